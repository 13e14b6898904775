"""Parquet -> batches."""
