"""The listeners: control socket and HTTP, over one command table."""
