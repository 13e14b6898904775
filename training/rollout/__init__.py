"""The journal of a model, printed."""
