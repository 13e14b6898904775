"""What users did: POST /v1/events, and the log of it that labels are joined from."""
