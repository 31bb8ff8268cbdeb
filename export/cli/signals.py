"""Signals that end a command: Ctrl-C, SIGTERM, and SIGHUP when a terminal closes. Loads nothing heavy."""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import NoReturn

from bakeout.models.files.temporary import discard_all

_NAMES = ("SIGINT", "SIGTERM", "SIGHUP")


class _Ended(SystemExit):
    """Raised by a signal. No ``KeyboardInterrupt``: Python ends by SIGINT where one has passed through ``exec``."""


_show_unraisable = sys.unraisablehook
# The status of the last signal that came, where one did.
_status: list[int] = []


@contextmanager
def ended_by_signals() -> Iterator[None]:
    """Let each of the signals end the block as an error does, so that nothing half-written stays.

    The process then exits with 128 + the signal's number, and says so in a line.
    """
    handlers = {number: signal.getsignal(number) for number in _numbers()}
    hook = sys.unraisablehook
    end_by_signals()
    try:
        yield
    except (_Ended, Exception):
        # Libraries that are being imported turn an interruption into errors of their own.
        if not _status:
            raise
        _say_interrupted()
    except KeyboardInterrupt:
        _status[:] = [128 + signal.SIGINT]
        _say_interrupted()
    finally:
        sys.unraisablehook = hook
        for number, handler in handlers.items():
            signal.signal(number, handler)


def end_by_signals() -> None:
    """Handle the signals in this way for the rest of the process. One that is ignored, as under ``nohup``, stays so."""
    _status.clear()
    if numbers := _numbers():
        for number in numbers:
            if signal.getsignal(number) is not signal.SIG_IGN:
                signal.signal(number, _end)
        sys.unraisablehook = _unraisable


def _numbers() -> list[int]:
    if threading.current_thread() is not threading.main_thread():
        return []
    return [getattr(signal, name) for name in _NAMES if hasattr(signal, name)]  # Windows has no SIGHUP


def _end(number: int, frame: FrameType | None) -> NoReturn:
    _status[:] = [128 + number]
    raise _Ended(128 + number)


def _say_interrupted() -> NoReturn:
    if sys.stderr is not None:
        print("interrupted", file=sys.stderr, flush=True)
    sys.exit(_status[-1])


def _unraisable(error: sys.UnraisableHookArgs) -> None:
    """End where Python would show an interruption and go on: in a destructor, a callback, or at its own exit."""
    if _status and issubclass(error.exc_type, _Ended):
        discard_all()
        os._exit(_status[-1])
    _show_unraisable(error)
