"""Choice of what answers a request: by its own names, its experiments, the canary's share."""
