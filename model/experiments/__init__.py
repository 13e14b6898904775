"""Experiments on users: experiments.yaml, and which arm a unit has."""
