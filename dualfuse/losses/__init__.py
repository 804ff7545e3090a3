"""Losses of the tasks: tensors in, a scalar out. In a distributed run the mean over processes is the global loss."""
