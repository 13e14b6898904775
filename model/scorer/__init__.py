"""Artifact -> answers, for the service and for batch scoring alike."""
