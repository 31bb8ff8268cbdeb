"""UNLEARN and LEARN (arXiv 2408.04140)."""
