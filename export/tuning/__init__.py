"""Tuning: a recipe with every choice filled in."""
