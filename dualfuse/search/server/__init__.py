"""The search service: one process, one model, one collection, many users."""
