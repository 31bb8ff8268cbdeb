"""The names of an artifact's files."""

from bakeout.models.files.artifact_names import MANIFEST as MANIFEST
from bakeout.models.files.artifact_names import PLAN as PLAN

GRAPH = "model.onnx"
DATA = "model.onnx.data"
CARD = "README.md"
RECIPE = "recipe.yaml"
# It signs the manifest and all other files, so that it is in no manifest itself.
SIGNATURE = "model.sig"
CERTIFICATE = "certificate.json"
ERASURE_RECORD, ERASURE_PAGE = "erasure.json", "erasure.md"
TOFU, TOFU_SUMMARY = "TOFU_EVAL.json", "TOFU_SUMMARY.json"
# What certifying and recording write into an artifact: no figure depends on it.
ADDED = frozenset((CARD, CERTIFICATE, ERASURE_RECORD, ERASURE_PAGE, TOFU, TOFU_SUMMARY))
# A policy's adapter for ONNX Runtime.
ADAPTER = "policy.onnx_adapter"
