"""Samples: how they are kept, in which order they come, and how they become tensors."""
