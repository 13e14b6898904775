"""Metrics of answers against labels, and their bootstrap over users: arrays in, numbers out."""
