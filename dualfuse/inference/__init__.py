"""A trained model, used: what it answers, and what it looked at."""
