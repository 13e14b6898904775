"""Requests of the impression log, from lines to the tables that a join computes with."""
