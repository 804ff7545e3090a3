"""Search: find the images of a folder, or of shards, by a text or by an image."""
