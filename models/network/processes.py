"""Several processes that fit one plan: each runs its share of the batches, and all go on with what all have read.

Started by ``torchrun`` or ``accelerate launch``. Batches are formed before they are shared, and merged in their order:
a plan does not depend on the number of processes.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import islice
from typing import Any, TypeVar

import torch.distributed as distributed

from bakeout.models.errors import BakeoutError
from bakeout.models.launched import launched_processes

_Item = TypeVar("_Item")

# Seconds until a signal is heard.
_HEARD = 0.1

# The group of the processes that have joined; none in a process of its own.
_joined: list[Any] = []


@contextmanager
def joined() -> Iterator[int]:
    """A context in which probing is shared among the processes that were launched together: this one's rank.

    Raises ``BakeoutError`` where the others cannot be reached.
    """
    if launched_processes() == 1:
        yield 0
        return
    try:
        # What is shared has left the devices.
        _while_signals_are_heard(lambda: distributed.init_process_group("gloo"))
    except (ValueError, RuntimeError) as error:
        raise BakeoutError(
            f"The other processes cannot be reached ({str(error).splitlines()[0]}).",
            "Start them with torchrun or accelerate launch.",
        ) from None
    _joined.append(distributed.group.WORLD)
    try:
        yield distributed.get_rank()
    finally:
        _joined.clear()
        distributed.destroy_process_group()


def _while_signals_are_heard(call: Callable[[], None]) -> None:
    """Run ``call`` in a thread of its own: torch waits for processes that never come, for half an hour, and hears none.

    The thread is left behind where a signal ends the waiting.
    """
    raised: list[Exception] = []

    def run() -> None:
        try:
            call()
        except Exception as error:  # noqa: BLE001 - raised where it is waited for
            raised.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    while thread.is_alive():
        thread.join(_HEARD)
    if raised:
        raise raised[0]


def are_several() -> bool:
    """Whether other processes have joined."""
    return bool(_joined)


def share(items: Sequence[_Item]) -> Sequence[_Item]:
    """The items that this process works on."""
    return items[distributed.get_rank() :: distributed.get_world_size()] if _joined else items


def in_order(own: Iterator[_Item]) -> Iterator[_Item]:
    """What all processes give for their ``share`` of some items, in the order of the items."""
    if not _joined:
        yield from own
        return
    while True:
        # Empty behind the end.
        gathered = _gathered(list(islice(own, 1)))
        for given in gathered:
            yield from given
        if not all(gathered):
            return


def all_agree(here: bool) -> bool:
    """Whether it is so in every process."""
    return all(_gathered(here)) if _joined else here


def least(here: int) -> int:
    """The least that any process has."""
    return min(_gathered(here)) if _joined else here


def require_alike(given: object) -> None:
    """Raise ``BakeoutError`` where the processes were not all given the same, which ``given`` describes."""
    if _joined and any(other != given for other in _gathered(given)):
        raise BakeoutError(
            "The processes fit different recipes, models or data.",
            "Give all of them the same files.",
        )


def _gathered(value: Any) -> list[Any]:
    values: list[Any] = [None] * distributed.get_world_size()
    try:
        distributed.all_gather_object(values, value)
    except RuntimeError as error:
        # Gloo puts a place in its source before what happened, and advice behind it.
        first, _, _ = (str(error).strip() or "?").splitlines()[0].partition(". ")
        raise BakeoutError(
            f"Another process has ended ({first.rpartition('] ')[2]}).",
            "Start them again: what was probed until then is kept, unless it is turned off.",
        ) from None
    return values
