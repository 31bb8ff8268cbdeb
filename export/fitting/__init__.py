"""Fitting: from a recipe to a plan."""
