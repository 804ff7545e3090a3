"""Data sets: reading samples, their order in training, preprocessing, and batches."""
