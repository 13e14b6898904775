"""Logged requests scored again by another version or value model."""
