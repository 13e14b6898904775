"""Value models: a candidate's answers -> one combined score."""
