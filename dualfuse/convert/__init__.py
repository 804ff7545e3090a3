"""Foreign checkpoints to ours, and back."""
