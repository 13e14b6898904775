"""Ranks, processes and the sharding of tables."""
