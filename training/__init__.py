"""Offline jobs: prepare and simulate data, train, evaluate, export. Imports model, never service."""
