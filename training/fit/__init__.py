"""What the training data teaches before any step: splits, vocabularies, transforms, reports."""
