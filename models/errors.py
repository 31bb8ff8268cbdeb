"""The one exception that users are meant to see."""

from __future__ import annotations


class BakeoutError(Exception):
    """Something the user can mend: one line with the cause, one with the remedy. Never raised for our own bugs."""

    def __init__(self, cause: str, remedy: str) -> None:
        super().__init__(f"{cause} {remedy}")
        self.cause = cause
        self.remedy = remedy
