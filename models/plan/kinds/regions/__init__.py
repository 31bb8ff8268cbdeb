"""The regions of key space that a check can refuse in: one module each, which answers for itself."""
