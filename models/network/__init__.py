"""A model as a PyTorch network: its feed-forward layers, probed and run."""
