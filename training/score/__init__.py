"""Batch scoring, Parquet to Parquet. The main path is run.py. Workers import no TorchRec."""
