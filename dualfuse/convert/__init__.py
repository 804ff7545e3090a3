"""Convert third-party checkpoints to model folders, and back."""
