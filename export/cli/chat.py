"""`bakeout chat`."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

import click

from bakeout.export.cli.console import emit_json, say, show
from bakeout.export.cli.options import PATH, chosen_template, json_output, template_options
from bakeout.models.errors import BakeoutError

if TYPE_CHECKING:
    from bakeout.export.running.sampling import Sampling


@click.command()
@click.argument("directory", type=PATH)
@click.option("--prompt", help="Answer this one prompt and stop.")
@click.option("--max-new-tokens", type=click.IntRange(1), default=256, show_default=True)
@click.option("--temperature", type=float, help="Sample the tokens; by default each is the most likely one (greedy).")
@click.option(
    "--top-p",
    type=float,
    default=1.0,
    show_default=True,
    help="Sample among the most likely tokens whose probabilities add up to this.",
)
@click.option("--seed", type=int, default=0, show_default=True, help="Seed of the sampling.")
@click.option("--single-turn", is_flag=True, help="Answer each prompt without those before it.")
@template_options
@json_output
def chat(
    directory: Path,
    prompt: str | None,
    max_new_tokens: int,
    temperature: float | None,
    top_p: float,
    seed: int,
    single_turn: bool,
    chat_template: str | None,
    arguments: tuple[str, ...],
    date: str | None,
    machine: bool,
) -> None:
    """Talk to an artifact through ONNX Runtime.

    DIRECTORY: an artifact, or any ONNX directory or file. Prompts go through the tokenizer's chat template, if any:
    an artifact's leaves out turns that were refused.
    """
    if machine and prompt is None:
        raise BakeoutError("A conversation is not one JSON object.", "Give `prompt` with --json.")
    sampling = _sampling(temperature, top_p, seed)
    template = chosen_template(chat_template, arguments, date)
    from bakeout.export.running.chat import Chat
    from bakeout.export.running.runner import Runner

    runner = Runner(directory, chat_template=template)
    conversation = Chat(runner, max_new_tokens, sampling, single_turn)
    if machine:
        answer = "".join(conversation.answer(prompt or "")).strip()
        emit_json({"provider": runner.provider, "prompt": prompt, "answer": answer})
        return
    say(f"{directory} on {runner.provider}")
    if prompt is not None:
        _print_answer(conversation.answer(prompt))
        return
    say("An empty line ends the conversation" + (", /new begins another." if conversation.remembers else "."))
    while question := _ask():
        if question == "/new":
            conversation.forget()
        else:
            _print_answer(conversation.answer(question))


def _sampling(temperature: float | None, top_p: float, seed: int) -> Sampling | None:
    if temperature is None:
        for name in [name for name, is_given in {"top_p": top_p != 1.0, "seed": seed != 0}.items() if is_given]:
            raise BakeoutError(f"`{name}` is for sampling, and decoding is greedy.", "Give `temperature` too.")
        return None
    from bakeout.export.running.sampling import Sampling

    return Sampling(temperature, top_p, seed)


def _ask() -> str:
    try:
        return input("> ").strip()
    except EOFError:
        return ""


def _print_answer(pieces: Iterable[str]) -> None:
    begun = False
    for piece in pieces:
        # Many tokenizers begin an answer with a space.
        show(piece if begun else piece.lstrip(), end="")
        begun = begun or bool(piece.strip())
    show("")
