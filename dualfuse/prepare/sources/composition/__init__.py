"""Readers of composition benchmarks in the layouts that their owners publish."""
