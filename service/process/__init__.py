"""Processes, threads and cores, the socket and the health check."""
