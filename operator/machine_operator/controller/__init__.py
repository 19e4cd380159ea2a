"""The operator: a kopf shell that feeds keys of Machines into a work queue, and reconcilers that work it off."""
