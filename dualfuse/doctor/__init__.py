"""Checking a data set."""
