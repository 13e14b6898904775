"""The ranker: feed schema -> features -> embeddings -> fusion -> towers -> probabilities -> combined score."""
