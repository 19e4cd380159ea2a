"""Terminals: shells in machines, over WebSockets."""
