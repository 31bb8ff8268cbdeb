"""The PyTorch model with a plan applied: the reference with which everything baked is compared."""
