"""Ground that every room stands on: errors, log lines, the record of a request."""
