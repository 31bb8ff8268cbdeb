"""LUNAR (arXiv 2502.07218)."""
