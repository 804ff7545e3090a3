"""Conversion of data sets of many formats to indexed shards."""
