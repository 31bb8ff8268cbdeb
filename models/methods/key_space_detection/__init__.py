"""Key Space Detection (arXiv 2503.21730)."""

from bakeout.models.methods.key_space_detection.options import STRUCTURE, KeySpaceDetectionOptions
from bakeout.models.methods.method import Method
from bakeout.models.plan import KeySpaceDetection

METHOD = Method(
    name="key_space_detection",
    title="Key Space Detection",
    paper="arXiv 2503.21730, section 3.2",
    summary="Refuses queries whose key vector lies in a cube.",
    options=KeySpaceDetectionOptions,
    kind=KeySpaceDetection,
    fit="bakeout.models.methods.key_space_detection.fit:fit",
    require="bakeout.models.methods.key_space_detection.queries:require_queries",
    chooses=STRUCTURE,
    figures="bakeout.models.methods.key_space_detection.figures:figures",
    chosen="bakeout.models.methods.key_space_detection.fit:chosen",
)
