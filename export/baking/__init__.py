"""Baking: a model and a plan become an artifact."""
