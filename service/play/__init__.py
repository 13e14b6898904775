"""The page at /play: a ranking to try, beside others and under other weights."""
