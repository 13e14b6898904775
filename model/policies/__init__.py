"""Policies: from combined scores to the order that is answered."""
