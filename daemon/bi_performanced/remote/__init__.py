"""Redis behind the shared store, and through it the other hosts.

Its own layer: it knows nothing of the store, of the cache or of the fronts. `component.Remote` is
what the cache calls; what happened on other hosts is told to a `Sink`.
"""
