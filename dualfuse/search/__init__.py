"""The application over the models: finds images of a folder, or of shards, by text or by image."""
