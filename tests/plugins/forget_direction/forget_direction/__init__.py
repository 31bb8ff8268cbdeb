"""A method of another package: one folder, and the entry point in its ``pyproject.toml``."""

from bakeout.models.methods.method import Method
from bakeout.models.plan import LowRankUpdate

from .options import SEARCH, ForgetDirectionOptions

METHOD = Method(
    name="forget_direction",
    title="Forget Direction",
    paper="a test of Bakeout",
    summary="Takes the mean key vector of the forget data out of what one layer reads.",
    options=ForgetDirectionOptions,
    kind=LowRankUpdate,
    fit="forget_direction.fit:fit",
    search=SEARCH,
)
