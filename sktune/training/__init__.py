"""Training: the loop, its engines, checkpoints, meters, and the run that holds them together."""
