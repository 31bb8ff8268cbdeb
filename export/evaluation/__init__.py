"""Evaluation: what a model still answers."""
