"""Previews: what a port of a machine serves, seen from outside."""
