"""Recipes: the schema, loading and data files."""
