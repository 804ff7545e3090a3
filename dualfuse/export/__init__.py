"""Model folders made of checkpoints: of one, or of the average of several."""
