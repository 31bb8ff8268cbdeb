"""The options of Reveal-and-Release."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, ClassVar

from pydantic import AfterValidator, Field, NonNegativeFloat, PositiveFloat, PositiveInt

from bakeout.models.methods.options import MethodOptions, Names, Section, Seed

_FromZeroToOne = Annotated[float, Field(ge=0, le=1)]


def _regular_expression(pattern: str) -> str:
    try:
        re.compile(pattern)
    except re.error as error:
        raise ValueError(f"{pattern!r} is not a regular expression ({error})") from None
    return pattern


class RevealOptions(Section):
    """How a model is made to reveal what it knows."""

    pulls: PositiveInt = Field(default=16, description="Instructions chosen in a round, one after the other.")
    samples: PositiveInt = Field(default=24, description="Questions sampled for each of them.")
    temperature: PositiveFloat = Field(default=1.0, description="The temperature at which questions are sampled.")
    question_tokens: PositiveInt = Field(default=48, description="Longest question; a longer one is not kept.")
    answer_tokens: PositiveInt = Field(
        default=16, description="Longest answer, which is greedy; a longer one is not kept."
    )
    minimum_score: _FromZeroToOne = Field(
        default=0.95,
        description="Lowest score of a question and its answer: 1 where a pattern matches, or how new they are.",
    )
    minimum_confidence: _FromZeroToOne = Field(
        default=0.8, description="Lowest geometric mean of the probabilities of an answer's tokens."
    )
    exploration: NonNegativeFloat = Field(
        default=0.5, description="NeuralUCB's nu: the weight of the uncertainty of an instruction's reward."
    )
    regularisation: PositiveFloat = Field(default=0.1, description="NeuralUCB's lambda.")
    chat: bool = Field(
        default=False, description="Put instructions and questions through the chat template, as a user's messages."
    )


class ReleaseOptions(Section):
    """How a round's two modules are trained and applied."""

    rank: PositiveInt = Field(
        default=16, description="The rank of a module in every weight of the feed-forward layers."
    )
    steps: PositiveInt = Field(default=30, description="AdamW's steps for each module.")
    batch_size: PositiveInt = Field(default=32, description="Texts a step.")
    learning_rate: PositiveFloat = Field(default=2e-3, description="AdamW's.")
    softening: PositiveFloat = Field(
        default=4.0, description="What the logits are divided by in the forget module's likelihood (our reading)."
    )
    forget_step: PositiveFloat = Field(
        default=0.5, description="lambda_f: the share of the forget module that is subtracted."
    )
    retain_step: NonNegativeFloat = Field(
        default=1.0, description="lambda_r: the share of the retain module that is added."
    )
    orthogonality: NonNegativeFloat = Field(default=0.1, description="mu: the weight of O-LoRA's term.")


class RevealAndReleaseOptions(MethodOptions):
    """The options of Reveal-and-Release (arXiv 2509.14624)."""

    roles: ClassVar[tuple[str, ...]] = ("retain",)
    probed: ClassVar[tuple[str, ...]] = roles

    instructions: list[str] = Field(
        description="Instructions that ask the model for a question; a bandit selects among them.", min_length=1
    )
    patterns: Annotated[list[Annotated[str, AfterValidator(_regular_expression)]], Field(min_length=1)] | None = Field(
        default=None,
        description="Regular expressions that describe what is to be forgotten; without any, it is what is unlike the "
        "data to keep.",
    )
    retain: Names | None = Field(default=None, description="Names of the data to keep; by default all.")
    directory: Path = Field(
        description="Where finished rounds and the revealed data are kept, beside the recipe: a fit that was "
        "interrupted goes on from there."
    )
    experts: bool = Field(
        default=True,
        description="Whether a mixture's experts are changed too, or only the layers that see every token.",
    )
    rounds: PositiveInt = Field(default=6, description="The largest number of rounds.")
    target: Annotated[float, Field(ge=0, lt=1)] = Field(
        default=0.02, description="Stop when at most this share of the revealed answers is left."
    )
    utility: _FromZeroToOne = Field(
        default=0.95, description="Stop before any retained data keeps less than this share."
    )
    reveal: RevealOptions = Field(default=RevealOptions(), description="How the model is made to reveal what it knows.")
    release: ReleaseOptions = Field(
        default=ReleaseOptions(), description="How a round's modules are trained and applied."
    )
    seed: Seed = Field(default=0, description="Seed of sampling and training.")
