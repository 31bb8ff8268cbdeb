"""What is measured, how much of it and how: the recipe's `evaluate` section, and what `bakeout evaluate` takes."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, PositiveInt

from bakeout.models.methods.options import Section, Seed, Share

# What `rows: auto` measures of each data name.
GENERATED_TOKENS, READ_ROWS = 25_600, 300
# The length of an answer whose grader knows none better.
_LENGTH = 256


class Tasks(Section):
    """Tasks of lm-evaluation-harness, with its own prompts and metrics."""

    names: Annotated[tuple[str, ...], BeforeValidator(lambda value: (value,) if isinstance(value, str) else value)] = (
        Field(min_length=1, description="Names of tasks, groups or tags.")
    )
    directory: Path | None = Field(None, description="Where more tasks' YAML files lie.")
    few_shot: Annotated[int, Field(ge=0)] | None = Field(
        None, description="Examples before each question; by default the task's own number."
    )
    limit: PositiveInt | None = Field(None, description="The most questions of each task.")
    chat: bool = Field(
        False, description="Put prompts through the tokenizer's chat template, one turn for each example."
    )
    code: bool = Field(False, description="Let tasks in `directory` run the Python functions that they name.")


class EvaluateOptions(Section):
    """What `build` measures the base model and the artifact on, besides the data's test rows, and how they answer."""

    rows: PositiveInt | Literal["auto", "all"] = Field(
        "auto",
        description=f"The most rows of each data name, spread evenly over them. `auto`: as many as make "
        f"{GENERATED_TOKENS:,} generated tokens at `max_new_tokens`, or {READ_ROWS} where nothing is generated, so "
        "that a build of a small model ends in minutes.",
    )
    max_new_tokens: PositiveInt | Literal["auto"] = Field(
        "auto",
        description="Where answers are cut off, and never before a refusal would be told. `auto`: one more than the "
        f"longest response for `exact`, else {_LENGTH}.",
    )
    runtime: Literal["onnxruntime", "genai"] = Field(
        "onnxruntime",
        description="What generates answers: ONNX Runtime in a loop of ours, or onnxruntime-genai in its own, as where "
        "it serves the artifact. It shows no logits, which `likelihood`, `choice`, texts and tasks read.",
    )
    batch_size: PositiveInt = Field(32, description="How many answers are generated together.")
    temperature: Annotated[float, Field(ge=0)] = Field(
        0.0, description="0: the most probable token each time (greedy); else tokens are drawn."
    )
    top_p: Share = Field(1.0, description="Draw among the most probable tokens that reach this probability together.")
    seed: Seed = Field(0, description="Of the draws.")
    answers: Path | None = Field(
        None,
        description="A file for every answer as soon as it is given. Answers that it holds already are not generated "
        "again, so that an evaluation that was cut goes on.",
    )
    tasks: Tasks | None = None

    def beside(self, directory: Path) -> EvaluateOptions:
        """The same with the paths, which are relative to a recipe's ``directory``, absolute."""
        changed: dict[str, Any] = {}
        if self.answers is not None:
            changed["answers"] = (directory / self.answers).resolve()
        if self.tasks is not None and self.tasks.directory is not None:
            tasks_directory = (directory / self.tasks.directory).resolve()
            changed["tasks"] = self.tasks.model_copy(update={"directory": tasks_directory})
        return self.model_copy(update=changed) if changed else self

    def length(self, longest: int | None) -> int:
        """Where answers are cut off; ``longest``: one more than the longest response, for graders that need no more."""
        if self.max_new_tokens != "auto":
            return self.max_new_tokens
        return _LENGTH if longest is None else longest

    def most_rows(self, length: int | None) -> int | None:
        """The most rows of one name, whose answers take ``length`` tokens at most; None for all of them."""
        if self.rows == "all":
            return None
        if self.rows != "auto":
            return self.rows
        return READ_ROWS if length is None else max(GENERATED_TOKENS // length, 1)
