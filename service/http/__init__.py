"""A connection up to its request: protocol limits, admission, keys, TLS, tracing."""
