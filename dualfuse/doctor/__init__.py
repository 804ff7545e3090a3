"""Checks of data sets for defects."""
