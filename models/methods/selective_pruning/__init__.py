"""Selective Pruning (arXiv 2403.01267)."""
