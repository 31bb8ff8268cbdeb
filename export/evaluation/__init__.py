"""Evaluation: how much a model still answers."""
