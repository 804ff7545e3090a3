"""Predictions, embeddings and explanations of a trained model."""
