"""What rows of data are used for, by name."""

from __future__ import annotations

from typing import Literal, get_args

# The uses of the files of one name: fitting; choosing structure and strength; setting alpha; measuring the result.
Use = Literal["probe", "selection", "calibration", "test"]
USES: tuple[Use, ...] = get_args(Use)
# Which tokens statistics are over: the answers' alone, or all that are no padding.
Scope = Literal["answer", "all"]
