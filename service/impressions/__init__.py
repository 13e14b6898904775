"""The impression log: requests with their answers, in rotated files, and their Parquet."""
