"""Decisions beside the ranker: the choice of what answers a request, and the policy that makes the order."""
