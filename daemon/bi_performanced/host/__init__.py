"""What the operating system tells of this machine and its processes."""

from __future__ import annotations


class Unknown(Exception):
    """A figure that cannot be had now, and why: it is null, never 0."""
