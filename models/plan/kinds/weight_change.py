"""What becomes of one weight, answered by the kind of intervention that asks for it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any, ClassVar

from bakeout.models.plan.arrays import Array, Floats, Floats32, Integers
from bakeout.models.plan.attention_modules import WeightRole


class WeightChange(ABC):
    """A change of one weight W [out, in] (``y = W x``) of layer ``layer``, in attention of the block of that number.

    ``module``: what the model calls the linear layer, for a weight of attention.

    What is asked for is computed in float64, added to W in float64, and rounded to the type that W is stored in.
    ``exact``: what is asked for can be stored in every type, so that nothing of it can round away.
    """

    layer: int
    role: WeightRole
    module: str | None = None
    exact: ClassVar[bool] = False

    @property
    def place(self) -> str:
        """What tells it from other weights of its layer: its role, where that says enough."""
        return self.role

    @property
    @abstractmethod
    def count(self) -> int:
        """What the receipt counts: columns, rows, a rank."""

    @abstractmethod
    def fits(self, shape: tuple[int, ...]) -> bool:
        """Whether it can be a change of a weight of this shape."""

    @property
    def low_rank_factors(self) -> tuple[Floats32, Floats32] | None:
        """The two factors [out, rank] and [rank, in] of what is added, where it is their product whatever W is."""
        return None

    def touched(self) -> Integers | None:
        """The columns of W outside of which nothing changes, ascending; None where any can."""
        return None

    @abstractmethod
    def asked(self, before: Floats, rows: slice, columns: slice | Integers) -> Floats:
        """What is to be added to a block of W: W[rows, columns], float64, to the same shape.

        A weight that is stored transposed is changed in blocks of columns, which then lie in memory in Fortran order;
        the result should lie so too.
        """

    @abstractmethod
    def formula(self, weight: Any, array: Callable[[Array], Any]) -> Any:
        """W after the change, by its textbook formula; the reference with which everything baked is compared.

        ``weight`` is W, in float64 unless ``exact``, of a library whose arrays take Python's operators and indices;
        ``array`` turns a NumPy array into one of that library. ``weight`` itself may be changed and returned.
        """
