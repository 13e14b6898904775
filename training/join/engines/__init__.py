"""Engines of a join: what runs its expression over the staged files of an hour."""
