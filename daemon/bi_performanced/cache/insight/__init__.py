"""What the cache knows of its keys, for people who ask: one key, the hottest, by their like."""
