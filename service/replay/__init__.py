"""Logged requests scored again by another version, value model or policy."""
