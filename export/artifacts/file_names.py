"""The names of an artifact's files."""

GRAPH = "model.onnx"
DATA = "model.onnx.data"
PLAN = "plan.safetensors"
MANIFEST = "bakeout.json"
CARD = "README.md"
RECIPE = "recipe.yaml"
# It signs the manifest and all other files, so that it is in no manifest itself.
SIGNATURE = "model.sig"
CERTIFICATE = "certificate.json"
ERASURE_RECORD, ERASURE_PAGE = "erasure.json", "erasure.md"
