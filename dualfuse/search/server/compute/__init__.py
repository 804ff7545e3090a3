"""What requests have computed: batches of the model, caches, thumbnails and near copies."""
