"""Errors, log lines and the record of a request, which every room uses."""
