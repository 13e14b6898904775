"""What the ranker is: feed schema -> features -> embeddings -> fusion -> towers -> probabilities -> combined score."""
