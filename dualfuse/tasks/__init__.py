"""What a model learns, from what, and how it is judged: one file per task."""
