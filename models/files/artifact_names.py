"""The names by which a directory is told to be an artifact."""

MANIFEST = "bakeout.json"
PLAN = "plan.safetensors"
