"""`python -m training observed DIR`: what was answered against what users did, by day, version and arm."""
