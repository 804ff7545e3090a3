"""What a model learns, from which data, and how it is evaluated: one file per task."""
