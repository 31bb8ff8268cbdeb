"""Whether an artifact says its refusal whole and then stops, in a decode loop that reads what every loop reads."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from bakeout.export.artifacts.decoding_bans import find_bans
from bakeout.export.artifacts.onnx_layout import home_of
from bakeout.export.running.refusals import is_refused
from bakeout.export.running.runner import Runner
from bakeout.graph_passes.graph.graph_file import load_graph
from bakeout.graph_passes.graph.precision import stored_precision
from bakeout.models.checkpoint.end_of_text import CONFIG, GENAI, GENERATION, files_that_end_texts, read_end_of_text
from bakeout.models.files.json_object import read_json

# How many tokens more than the refusal's a loop is given to stop by itself.
_MORE = 8
_BATCH = 32


def check_refusals(graph_file: Path, refusal: Sequence[int], prompts: Sequence[Sequence[int]]) -> tuple[bool, str]:
    """Whether every one of ``prompts`` that a graph refuses gets ``refusal`` and no token more; and that in words.

    One of them also runs in a batch with one that is answered, and must get it if it is refused there. Neither may a
    file of its configuration end texts with other tokens, nor forbid the refusal's. Raises ``BakeoutError`` where the
    graph cannot be run.
    """
    if problems := list(_obstacles(home_of(graph_file), refusal)):
        return False, "; ".join(problems)
    runner = Runner(graph_file, mapped=True)
    # Rows that share a batch can share a scale of quantised values, which can change a decision.
    batch_size = 1 if stored_precision(load_graph(graph_file)) == "quantised" else _BATCH
    by_length = sorted(prompts, key=len)
    refused: list[Sequence[int]] = []
    answered: list[Sequence[int]] = []
    for start in range(0, len(by_length), _BATCH):
        rows = by_length[start : start + _BATCH]
        begun = runner.generate_with_logits(rows, 1, batch_size=batch_size)
        for prompt, (_, logits) in zip(rows, begun, strict=True):
            (refused if is_refused(logits[0]) else answered).append(prompt)
    if not refused:
        return True, "no prompt was refused"
    most = len(refusal) + _MORE
    # A graph treats a batch otherwise that is refused in part.
    mixed = [*refused[:1], *answered[:1]]
    begun, answers = runner.generate_with_logits(mixed, 1), runner.generate(mixed, most)
    if any(is_refused(logits[0]) and answer != [*refusal] for (_, logits), answer in zip(begun, answers, strict=True)):
        return False, "a prompt that is refused in a batch with one that is not did not get the whole refusal"
    answers = runner.generate(refused, most, batch_size=batch_size)
    whole = sum(answer == list(refusal) for answer in answers)
    return whole == len(refused), f"{whole} of {len(refused)} refused prompts got the whole refusal, which then stopped"


def _obstacles(directory: Path, refusal: Sequence[int]) -> Iterator[str]:
    ends = read_end_of_text(directory)
    if cut := ends.cut(refusal):
        yield cut
    for name in files_that_end_texts(directory):
        if refusal[-1] not in ends.named.get(name, ()):
            yield f"{name} does not name {refusal[-1]}, which ends the refusal, as a token that ends a text"
    for name in (GENERATION, CONFIG, GENAI):
        settings = read_json(directory / name)
        settings = settings.get("search", {}) if name == GENAI else settings
        for ban in find_bans(settings, refusal, name):
            yield f"{name}: {ban.name} is {ban.value}, which garbles the refusal"
