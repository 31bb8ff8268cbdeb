"""Neuron Adjust (arXiv 2503.21730)."""
