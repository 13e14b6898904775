"""Batch scoring, Parquet to Parquet. The main path is run.py; workers import no TorchRec."""
