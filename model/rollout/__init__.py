"""Rollout of a model's versions: which version answers what, and the journal of every decision."""
