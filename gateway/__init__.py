"""The gateway: HTTP in, messages of the ring out; text of the ring in, JSON and server-sent events out."""
