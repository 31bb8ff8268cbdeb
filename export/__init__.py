"""Floor 3: recipes, the pipeline, artifacts, and the command line."""
