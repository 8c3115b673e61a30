"""Commands that need more than one request, or none."""
