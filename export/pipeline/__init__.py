"""The pipeline: from a recipe to a verified artifact."""
