"""What every room uses: errors, log lines, the record of a request."""
