"""The HTTP server: connections, limits, WebSockets."""
