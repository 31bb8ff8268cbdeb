"""The demo on a real chat model: it forgets word problems, and a conversation shows what that means."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

from bakeout.export.baking.bake import bake
from bakeout.export.exporting.onnx_export import export_checkpoint
from bakeout.export.fitting.fit import fit
from bakeout.export.recipes.bake_options import BakeOptions
from bakeout.export.recipes.recipe import load_recipe
from bakeout.export.recipes.recipe_inputs import open_inputs
from bakeout.export.running.chat import Chat, prompt_tokens
from bakeout.export.running.refusals import Refusals, answer_text
from bakeout.export.running.runner import Runner
from bakeout.models.errors import BakeoutError
from bakeout.models.files.copying import copy_by_kernel
from bakeout.models.files.writing import replaced_directory, require_new
from bakeout.models.progress import Track, untracked
from bakeout.models.skills.word_problems import everyday_questions, few, word_problems

PROBLEMS, EVERYDAY = "word problems", "everyday questions"
ARTIFACT, WEIGHTS, DATA, BASE = "without-word-problems", "model.gguf", "data", "base"
_RECIPE = "recipe.yaml"
# Rows by their use; word problems are drawn as they are needed, everyday questions are few.
_USES = {
    PROBLEMS: {"probe": 100, "calibration": 60, "test": 20},
    EVERYDAY: {"probe": 77, "calibration": 20, "test": 20},
}
_LENGTH = 32
# What is said in one conversation: nothing of it is in the data.
CONVERSATION = (
    "Hi! I am planning a birthday party. Which games would you suggest?",
    "Good ideas. Lena buys 6 packs of 8 paper cups and 14 cups are used. How many cups are left?",
    "Never mind. What could I bake for the guests?",
    "thanks! and one more: if 3 cakes cost 45 dollars, how much do 5 of them cost?",
    "Please write a one-line invitation.",
)


@dataclass(frozen=True)
class Effect:
    """What became of one kind of question: how many were asked, refused, and answered exactly as before."""

    kind: str
    asked: int
    refused: int
    same: int

    def as_json(self) -> dict[str, Any]:
        """The counts by name."""
        return {"kind": self.kind, "asked": self.asked, "refused": self.refused, "same": self.same}


@dataclass(frozen=True)
class ChatDemo:
    """What the demo made, its effects, and one conversation: each turn with the answer before and after."""

    directory: Path
    provider: str
    effects: tuple[Effect, ...]
    turns: tuple[tuple[str, str, str], ...]


def run_chat_demo(directory: Path, weights: Path, *, track: Track = untracked) -> ChatDemo:
    """Let the chat model in ``weights``, a GGUF file, forget word problems; write everything into ``directory``.

    An earlier demo there is replaced, once the new one is whole. Raises ``BakeoutError`` where anything else is there.
    """
    require_earlier_chat_demo(directory)
    with replaced_directory(directory) as scratch:
        copy_by_kernel(weights, scratch / WEIGHTS)
        _write_data(scratch / DATA)
        recipe = scratch / _RECIPE
        recipe.write_bytes(files("bakeout.export").joinpath("templates/demo_smollm2.yaml").read_bytes())
        inputs = open_inputs(load_recipe(recipe))
        plan = fit(load_recipe(recipe), track, inputs=inputs)
        (scratch / BASE).mkdir()
        for _ in track([BASE], "exporting the base model", 1):
            export_checkpoint(inputs.checkpoint.directory, scratch / BASE, "fp32")
        bake(scratch / BASE, plan, scratch / ARTIFACT, BakeOptions(), track=track)
        base, edited = Runner(scratch / BASE), Runner(scratch / ARTIFACT)
        refusals = Refusals.of_artifacts([scratch / ARTIFACT])
        effects = tuple(_effect(kind, scratch, base, edited, refusals, track) for kind in _USES)
        turns = tuple(_turns(base, edited, track))
    return ChatDemo(directory, base.provider, effects, turns)


def data_file(kind: str, use: str) -> str:
    """The name of the file with the rows of one kind for one use."""
    return f"{kind.replace(' ', '-')}.{use}.jsonl"


def require_earlier_chat_demo(directory: Path) -> None:
    """Raise ``BakeoutError`` unless ``directory`` is free or holds what this demo wrote, and nothing else."""
    if not directory.is_dir():
        require_new(directory)
        return
    written = {ARTIFACT, WEIGHTS, DATA, BASE, _RECIPE}
    if strange := sorted({path.name for path in directory.iterdir()} - written):
        raise BakeoutError(f"{directory} holds {strange[0]}, which this demo did not write.", "Name another output.")


def _write_data(directory: Path) -> None:
    directory.mkdir()
    rows: Mapping[str, Iterator[dict[str, Any]]] = {PROBLEMS: word_problems(), EVERYDAY: iter(everyday_questions())}
    for kind, uses in _USES.items():
        for use, count in uses.items():
            lines = [json.dumps(row, ensure_ascii=False) + "\n" for row in few(rows[kind], count)]
            (directory / data_file(kind, use)).write_text("".join(lines), encoding="utf-8")


def _effect(kind: str, directory: Path, base: Runner, edited: Runner, refusals: Refusals, track: Track) -> Effect:
    """Questions that nothing was fitted on, asked as a chat program asks them."""
    lines = (directory / DATA / data_file(kind, "test")).read_text(encoding="utf-8").splitlines()
    prompts = [prompt_tokens(base.tokenizer, json.loads(line)["messages"][:1]) for line in lines]
    before = _answers(base, prompts, track, f"before: {kind}")
    after = _answers(edited, prompts, track, f"after: {kind}")
    refused = sum(refusals.is_refusal(answer_text(base.tokenizer, tokens)) for tokens in after)
    return Effect(
        kind,
        len(prompts),
        refused,
        sum(answer == edited_answer for answer, edited_answer in zip(before, after, strict=True)),
    )


def _answers(runner: Runner, prompts: Sequence[Sequence[int]], track: Track, description: str) -> list[list[int]]:
    answers = dict(track(runner.each_answer(prompts, _LENGTH), description, total=len(prompts)))
    return [answers[row] for row in range(len(prompts))]


def _turns(base: Runner, edited: Runner, track: Track) -> Iterator[tuple[str, str, str]]:
    chats = [Chat(runner, _LENGTH) for runner in (base, edited)]
    for question in track(CONVERSATION, "talking", len(CONVERSATION)):
        before, after = ("".join(chat.answer(question)).strip() for chat in chats)
        yield question, before, after
