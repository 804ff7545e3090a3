"""How a task is run: the loop, the optimiser, checkpoints, evaluation."""
