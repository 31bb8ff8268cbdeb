"""What a PyTorch decoder is made of, read from the model itself: no knowledge of architectures."""
