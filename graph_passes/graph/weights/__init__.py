"""Weights of a decoder graph by their layers and roles."""
