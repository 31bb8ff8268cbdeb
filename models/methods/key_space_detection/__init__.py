"""Key Space Detection (arXiv 2503.21730)."""
