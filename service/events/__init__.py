"""Actions of users: POST /v1/events, and its log, which labels are joined from."""
