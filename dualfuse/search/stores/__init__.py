"""Where embeddings are stored: one protocol, one file per store."""
