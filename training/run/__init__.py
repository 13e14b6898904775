"""The folder of a run: checkpoints, history, progress, resumption."""
