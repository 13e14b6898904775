"""Drift, the shadow version and the status page."""
