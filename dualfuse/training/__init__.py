"""Training: the loop, the optimizer, initial weights, checkpoints, and the log of a run."""
