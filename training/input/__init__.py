"""Where training takes its rows from: the interface (source.py) and its ways of reading."""
