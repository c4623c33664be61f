"""Mine difficult negatives out of large tweet corpora."""
