"""The names of an artifact's files."""

GRAPH = "model.onnx"
DATA = "model.onnx.data"
PLAN = "plan.safetensors"
MANIFEST = "bakeout.json"
CARD = "README.md"
RECIPE = "recipe.yaml"
