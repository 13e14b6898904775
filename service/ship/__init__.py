"""Copies of both logs' closed files where a join reads them: `--ship URL`."""
