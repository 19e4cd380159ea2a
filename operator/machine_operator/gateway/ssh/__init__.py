"""The SSH gateway, and the sessions that let people in."""
