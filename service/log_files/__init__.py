"""Logs on the disk: lines in rotated files of a folder, and how far each writer of them has come."""
