"""The application over the models: finds pictures of a folder, or of shards, by text or by picture."""
