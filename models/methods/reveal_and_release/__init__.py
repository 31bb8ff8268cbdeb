"""Reveal-and-Release (arXiv 2509.14624)."""
