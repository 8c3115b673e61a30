"""Profiles, and advice on measured evidence: what to change, and by which command."""
