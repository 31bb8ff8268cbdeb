"""Mixtures of experts in a graph."""
