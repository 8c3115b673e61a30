"""What both sides of the socket agree on: commands, frames, values, store layout, addresses.

A leaf package: it imports nothing of this project, and neither the daemon nor the client is
needed to use it.
"""

__version__ = "0.1.0"
