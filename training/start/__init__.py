"""Initial weights of a run: a parent, a warm start, foreign weights."""
