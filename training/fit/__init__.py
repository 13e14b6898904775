"""Lessons of the training data before any step: splits, vocabularies, transforms, reports."""
