"""The control program `bi-performance`."""
