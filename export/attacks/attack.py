"""Attacks: the same prompts in another form, or fed in another way, and the share that still gets an answer."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path
from types import MappingProxyType
from typing import Any

from bakeout.export.artifacts.file_names import PLAN
from bakeout.export.artifacts.manifest import read_manifest
from bakeout.export.baking.bake import bake
from bakeout.export.baking.refused_turns import with_refused_turns
from bakeout.export.evaluation.answering.questions import as_asked, read_questions
from bakeout.export.evaluation.evaluate import data_names
from bakeout.export.evaluation.graders.grader import AnswerGrader, Grader
from bakeout.export.evaluation.grading import EXACT_GRADER, AnswerJudge
from bakeout.export.evaluation.model_names import model_names
from bakeout.export.evaluation.recorded_inputs import recorded_dtype, tell_fitted_rows
from bakeout.export.recipes.bake_options import BakeOptions
from bakeout.export.recipes.data_files import Columns, in_columns
from bakeout.export.recipes.evaluation import EvaluateOptions
from bakeout.export.report.figures_file import Attack, Attacks
from bakeout.export.running.refusals import Refusals
from bakeout.export.running.runner import Runner
from bakeout.models.data.forms.forms import WAYS_OF_RUNNING
from bakeout.models.data.forms.kinds import KINDS, Kind
from bakeout.models.data.prompt_rows import (
    PromptRow,
    kinds_with_forms,
    kinds_without_rendering,
    read_prompt_rows,
    refused_turns,
    varied_records,
)
from bakeout.models.data.rows import Record, read_records
from bakeout.models.data.spreading import spread
from bakeout.models.errors import BakeoutError
from bakeout.models.files.writing import scratch_directory
from bakeout.models.plan import Positions
from bakeout.models.plan.plan_file import load_plan
from bakeout.models.progress import Track, untracked

NONE = "none"
# In the order of the table: the prompts as they are, their variants, and ways of running the prompts as they are.
ATTACKS: tuple[str, ...] = (NONE, *KINDS, *(way for way in WAYS_OF_RUNNING if way != "whole"))
# Tokens of a piece of a prompt in the attack `chunked`, and prompts in a batch.
CHUNK = 4
_BATCH = 32

# Greedy answers to prompts, of at most a number of tokens.
Feed = Callable[[Runner, Sequence[Sequence[int]], int], list[list[int]]]


@dataclass(frozen=True)
class AttackRow:
    """What one attack does to one artifact.

    ``target``: the artifact and, for Key Space Detection, its positions; ``refused``: answers that are the refusal,
    None for an artifact that cannot refuse; ``correct``: answers that the grader takes for right.
    """

    target: str
    data: str
    attack: str
    prompts: int
    refused: int | None
    correct: int

    @property
    def through(self) -> int:
        """The prompts that got an answer: any but the refusal; the correct one where the artifact cannot refuse."""
        return self.correct if self.refused is None else self.prompts - self.refused

    def as_json(self) -> dict[str, Any]:
        """The row as it stands in ``--json``."""
        return {
            "target": self.target,
            "data": self.data,
            "attack": self.attack,
            "prompts": self.prompts,
            "through": self.through,
            "refused": self.refused,
            "right": self.correct,
        }


def attack(
    directories: Sequence[Path],
    data: Sequence[Path],
    *,
    attacks: Sequence[str] = ATTACKS,
    positions: Sequence[Positions] = (),
    base: Path | None = None,
    mixed: Path | None = None,
    columns: Mapping[str, Columns] = MappingProxyType({}),
    grades: Mapping[str, Grader] = MappingProxyType({}),
    max_new_tokens: int | None = None,
    prompts: int = 200,
    seed: int = 0,
    track: Track = untracked,
) -> list[AttackRow]:
    """Attack artifacts with up to ``prompts`` rows of each file of ``data``, under ONNX Runtime, greedily.

    ``attacks``: names out of ``ATTACKS``; forms are those held out of `augment` (``forms.variants``). An attack
    that a file gives nothing for (``paraphrase``, ``language``; forms of conversations without any; ``few_shot`` of one
    row) has no row, nor has a form that the chat template does not render or the context does not hold,
    ``after_refusal`` and ``follow_up`` where nothing can refuse, and ``batch_mixing`` without ``mixed``: prompts of
    other kinds that share a batch with those of ``data``. ``columns``: which keys files have their rows under, where
    these are their own, by the files' names without their endings; ``grades``: how answers are judged, by the same
    names, exact match else; ``max_new_tokens``: where they are cut off, by default as in ``evaluate``. ``positions``:
    other settings of Key Space Detection than the artifact's own to measure as well, which needs ``base``, its base
    model.

    Raises ``BakeoutError`` for unknown attacks, rows that cannot be judged, graders of no generated answers, what
    cannot be read or run, and where no attack has a row.
    """
    if unknown := [name for name in attacks if name not in ATTACKS]:
        raise BakeoutError(f"No attack is called {unknown[0]!r}.", f"Choose among {', '.join(ATTACKS)}.")
    if positions and base is None:
        raise BakeoutError("Other positions have to be baked into the base model.", "Name it with --base.")
    for directory, other in product(directories, positions):
        # Regions of some positions cannot be tested at others.
        load_plan(directory / PLAN).at_positions(other)
    files = data_names(data)
    graders = {name: _of_answers(grades.get(name, EXACT_GRADER), name) for name in files}
    options = EvaluateOptions(max_new_tokens=max_new_tokens or "auto")
    tell_fitted_rows(directories, files)
    files = {name: in_columns(source, columns.get(name)) for name, source in files.items()}
    beside = None if mixed is None else in_columns(mixed, columns.get(mixed.stem))
    rows: list[AttackRow] = []
    for target, runner, refusals in _targets(directories, positions, base):
        mixing = [] if beside is None else read_records(beside, runner.tokenizer, runner.limits)
        others = [record.prompt_ids for record in mixing]
        for name, source in files.items():
            grader = graders[name]
            read = read_prompt_rows(as_asked(source, grader), runner.tokenizer, runner.limits)
            asked = spread(read, prompts)
            questions = spread(read_questions(source, grader, runner.tokenizer, runner.limits), prompts)
            jobs = list(attack_jobs(asked, attacks, runner, refusals, others, seed))
            for kind, feed, pairs in track(jobs, f"{target} on {name}", len(jobs)):
                given = [replace(questions[row], record=record) for row, record in pairs]
                judge = AnswerJudge(given, grader, refusals, runner)
                length = options.length(judge.longest if grader.bounded else None)
                judged = judge.judge(feed(runner, [record.prompt_ids for _, record in pairs], length))
                refused = sum(judgement.refused for judgement in judged) if refusals else None
                rows.append(
                    AttackRow(target, name, kind, len(given), refused, sum(judgement.right for judgement in judged))
                )
    if not rows:
        raise BakeoutError(
            f"There is nothing to ask in {', '.join(attacks)}: the rows, the model or its context give no such form.",
            "Choose other attacks or rows; `batch_mixing` takes the prompts of `--retain`.",
        )
    return rows


def attacks_figure(rows: Sequence[AttackRow], source: str) -> Attacks:
    """The rows as a figure of a report."""
    several = len({row.data for row in rows}) > 1
    return Attacks(
        source=source,
        rows=[
            Attack(
                attack=row.attack,
                target=f"{row.target}, {row.data}" if several else row.target,
                prompts=row.prompts,
                through=row.through,
            )
            for row in rows
        ],
    )


def _targets(
    directories: Sequence[Path], positions: Sequence[Positions], base: Path | None
) -> Iterator[tuple[str, Runner, Refusals]]:
    """Each artifact under its name, with its refusals; one at a time in memory."""
    for name, directory in zip(model_names(directories), directories, strict=True):
        read_manifest(directory)
        plan = load_plan(directory / PLAN)
        check = plan.check
        refusals = Refusals.of_artifacts([directory])
        own = f"{name}, {check.positions}" if check else name
        yield own, Runner(directory), refusals
        for other in positions:
            if base is None or check is None or other == check.positions:
                continue
            with scratch_directory() as scratch:
                options = BakeOptions(dtype=recorded_dtype([directory]))
                baked = bake(base, plan.at_positions(other), scratch / "artifact", options, canary=False)
                yield f"{name}, {other}", Runner(baked.directory), refusals


def attack_jobs(
    rows: Sequence[PromptRow],
    attacks: Sequence[str],
    runner: Runner,
    refusals: Refusals,
    others: Sequence[Sequence[int]],
    seed: int,
) -> Iterator[tuple[str, Feed, Sequence[tuple[int, Record]]]]:
    """(attack, how its prompts are fed, the prompts, each with its row's index); those without prompts are left out.

    What stands behind a refusal is asked with it, as programs ask it that do not render by the artifact's own template.
    """
    tokenizer = with_refused_turns(runner.tokenizer)
    plain = list(enumerate(row.plain(tokenizer) for row in rows))
    refused = [turn for text in sorted(refusals.texts) for turn in refused_turns(rows, text)]
    not_rendered = kinds_without_rendering(tokenizer)
    kinds: list[Kind] = [
        kind
        for kind in kinds_with_forms(rows, KINDS)
        if kind in attacks
        and kind not in not_rendered
        # Without a refusal the answer itself would stand before what insists.
        and (refused or kind != "follow_up")
    ]
    varied = varied_records(rows, kinds, tokenizer, limits=runner.limits, seed=seed, use="testing", refused=refused)
    ways: Mapping[str, Feed] = {
        "token_by_token": _in_pieces(1),
        "chunked": _in_pieces(CHUNK),
        "batch_mixing": _mixed_with(others),
    }
    for name in attacks:
        if name in KINDS:
            if varied.get(name):
                yield name, _whole, varied[name]
        elif name == NONE:
            yield name, _whole, plain
        elif name == "batch_mixing":
            if others:
                yield name, ways[name], plain
        else:
            yield name, ways[name], plain


def _of_answers(grader: Grader, name: str) -> AnswerGrader:
    if not isinstance(grader, AnswerGrader):
        raise BakeoutError(
            f"The grader `{next(iter(grader.described))}` of {name} judges no generated answers.", "Choose another one."
        )
    return grader


def _whole(runner: Runner, prompts: Sequence[Sequence[int]], most: int) -> list[list[int]]:
    return runner.generate(prompts, most, batch_size=_BATCH)


def _in_pieces(size: int) -> Feed:
    """Every prompt in runs of ``size`` tokens, each with the cache of those before it."""

    def feed(runner: Runner, prompts: Sequence[Sequence[int]], most: int) -> list[list[int]]:
        return runner.generate(prompts, most, batch_size=_BATCH, piece=size)

    return feed


def _mixed_with(others: Sequence[Sequence[int]]) -> Feed:
    """Every prompt in one batch with prompts of other kinds, padded to the longest of them."""

    def feed(runner: Runner, prompts: Sequence[Sequence[int]], most: int) -> list[list[int]]:
        answers: list[list[int]] = []
        half = _BATCH // 2
        for start in range(0, len(prompts), half):
            own = prompts[start : start + half]
            beside = [others[(start + index) % len(others)] for index in range(half)]
            batch = [prompt for pair in zip(own, beside, strict=False) for prompt in pair]
            answers += runner.generate(batch, most, batch_size=len(batch))[::2]
        return answers

    return feed
