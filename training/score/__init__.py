"""Batch scoring, `python -m training score`: its main path is run.py. Workers import no TorchRec."""
