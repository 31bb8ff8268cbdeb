"""Which prompts a runtime reads together."""

from __future__ import annotations

from collections.abc import Container, Iterator, Sequence

# The logits of one batch's prompts stay within a gibibyte of float32: genai's builder's graphs compute those of every
# token of a prompt.
MOST_LOGITS = 1 << 28


def batches(
    prompts: Sequence[Sequence[int]],
    batch_size: int,
    vocabulary: int,
    *,
    same_length: bool = False,
    longest: int | None = None,
    only: Container[int] | None = None,
) -> Iterator[list[int]]:
    """The prompts' indices in batches, the shortest prompts first.

    ``same_length``: only prompts of one length share a batch; ``longest``: a longer prompt is read alone. ``only``: the
    batches that hold any of these, which are whole and the same ones: in int8 an answer depends on what shares its
    batch.
    """
    batch: list[int] = []

    def is_full(length: int) -> bool:
        return len(batch) == batch_size or (len(batch) + 1) * length * vocabulary > MOST_LOGITS

    def is_wanted() -> bool:
        return only is None or any(row in only for row in batch)

    for row in sorted(range(len(prompts)), key=lambda row: len(prompts[row])):
        length = len(prompts[row])
        is_alone = longest is not None and length > longest
        if batch and (is_alone or is_full(length) or (same_length and length != len(prompts[batch[0]]))):
            if is_wanted():
                yield batch
            batch = []
        batch.append(row)
    if batch and is_wanted():
        yield batch
