"""The monitor: figures of the host and of processes, sampled each second, kept for a day."""
