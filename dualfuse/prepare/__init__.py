"""Turning what users have into indexed shards."""
