"""The shared cache: store, policy, recovery, and the component that the commands call."""
