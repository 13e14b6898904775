"""The same network as it scores: the request once, candidates many."""
