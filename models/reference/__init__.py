"""The PyTorch model with a plan in force: what everything baked is held against."""
