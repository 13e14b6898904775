"""Impressions and events -> training rows: `python -m training join FILE.yaml`."""
