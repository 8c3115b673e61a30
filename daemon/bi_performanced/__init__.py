"""The daemon: one trio process a host that holds the shared cache and answers for it."""
