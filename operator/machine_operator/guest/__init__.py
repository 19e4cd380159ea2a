"""The way into the Linux inside: one SSH connection for each awake machine, and what runs over it."""
