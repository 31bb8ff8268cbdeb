"""The one exception that users are meant to see."""

from __future__ import annotations


class BakeoutError(Exception):
    """Something the user can correct: one line with the cause, one with the remedy. Never raised for our own bugs.

    >>> try:
    ...     bakeout.load_plan("absent.safetensors")
    ... except bakeout.BakeoutError as error:
    ...     print(error.cause)
    ...     print(error.remedy)
    absent.safetensors: cannot be read (No such file or directory).
    Check the path.
    """

    def __init__(self, cause: str, remedy: str) -> None:
        # What files name, and what other libraries say, may have several lines.
        cause, remedy = " ".join(cause.splitlines()), " ".join(remedy.splitlines())
        super().__init__(f"{cause} {remedy}")
        self.cause = cause
        self.remedy = remedy

    def __reduce__(self) -> tuple[type[BakeoutError], tuple[str, str]]:
        # An exception is sent to another process with its ``args``, which here are one.
        return type(self), (self.cause, self.remedy)
