"""The papers' experiments as recipes: writes every YAML file below this directory anew.

    python examples/paper/recipes.py

One place says what they have in common; a test holds that the files are what it writes.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import click

MODELS = {
    "gemma-2b": "google/gemma-2b",
    "llama-2-7b": "meta-llama/Llama-2-7b-hf",
    "llama-3-8b": "meta-llama/Meta-Llama-3-8B",
    "llama-3-70b": "meta-llama/Meta-Llama-3-70B",
}
# Where alpha is the authors' k times the largest margin; k was published for this model alone.
MEASURED = "llama-3-8b"
TIMES_LARGEST = {"gsm8k": 2, "mbpp": 1.4}
SKILLS = {"gsm8k": "mbpp", "mbpp": "gsm8k"}
PRUNED = {"gsm8k": 0.015, "mbpp": 0.0001}
LANGUAGES = ["en", "de", "es", "hi", "zh", "vi", "ar"]
LUNAR_MODELS = {
    "llama-2-7b-chat": "meta-llama/Llama-2-7b-chat-hf",
    "llama-3-8b-instruct": "meta-llama/Meta-Llama-3-8B-Instruct",
    "gemma-7b-it": "google/gemma-7b-it",
    "qwen2-7b-instruct": "Qwen/Qwen2-7B-Instruct",
}


def recipes() -> Iterator[tuple[str, str]]:
    """Every recipe: its path from here, and its text."""
    for folder, model in MODELS.items():
        for forgotten, kept in SKILLS.items():
            for method, options in _skill_methods(folder, forgotten, kept).items():
                title = f"Effective Skill Unlearning (arXiv 2503.21730): forget {forgotten.upper()}, keep the rest."
                data = {forgotten: "probe calibration test", kept: "probe calibration test", "mmlu": "test"}
                yield (
                    f"effective-skill-unlearning/{folder}/{forgotten}-{method.replace('_', '-')}.yaml",
                    _recipe(title, model, data, method, options),
                )
    for language in LANGUAGES:
        for method, options in _language_methods(language).items():
            title = f"Effective Skill Unlearning (arXiv 2503.21730), Figure 8: forget {language}, test seven languages."
            data = {f"mlqa-{one}": "probe calibration test" for one in LANGUAGES}
            yield (
                f"effective-skill-unlearning/{MEASURED}/mlqa-{language}-{method.replace('_', '-')}.yaml",
                _recipe(title, MODELS[MEASURED], data, method, options),
            )
    for folder, model in LUNAR_MODELS.items():
        yield f"lunar/{folder}.yaml", _recipe(*_lunar(folder, model))
    yield from _unlearn()
    yield from _reveal_and_release()


def _skill_methods(folder: str, forgotten: str, kept: str) -> dict[str, Sequence[str]]:
    alpha = f"alpha: {{times_largest: {TIMES_LARGEST[forgotten]}}}  # the authors' k · m, by hand; `auto` is conformal"
    unpublished = "alpha: auto  # k is published for Llama-3-8B alone"
    names = [f"forget: {forgotten}", f"retain: {kept}"]
    return {
        "neuron_adjust": [
            *names,
            "ratio: 0.03  # the paper: 0.005, 0.015 and 0.03; `auto` is for `bakeout tune`",
            "coin: stochastic",
        ],
        "key_space_detection": [
            *names,
            "layers: last",
            "cubes: 1",
            alpha if folder == MEASURED else unpublished,
            "positions: step  # what the authors' code does",
        ],
        "selective_pruning": [*names, f"ratio: {PRUNED[forgotten]}"],
    }


def _language_methods(language: str) -> dict[str, Sequence[str]]:
    forget = f"forget: mlqa-{language}"
    return {
        "neuron_adjust": [forget, "ratio: 0.03", "coin: stochastic"],
        "key_space_detection": [
            forget,
            "layers: last",
            "cubes: 1",
            "alpha: {times_largest: 0.06}  # the authors' k · m, m being 196 to 307",
            "positions: step  # what the authors' code does",
        ],
    }


def _lunar(folder: str, model: str) -> tuple[str, str, Mapping[str, str], str, Sequence[str]]:
    title = "LUNAR (arXiv 2502.07218): send TOFU's forget set to where the model says that it does not know."
    layers = "layers: [22]  # the authors' of 32" if folder == "llama-3-8b-instruct" else "layers: auto"
    return (
        title,
        model,
        {"tofu-forget": "probe test", "tofu-retain": "probe test", "unverifiable": "probe"},
        "lunar",
        [
            "forget: tofu-forget",
            "reference: unverifiable",
            "retain: tofu-retain",
            layers,
            "solver: gradient",
            "aim: shift",
            "coefficient: 2.0  # the authors' code; 1 in their text",
        ],
    )


def _unlearn() -> Iterator[tuple[str, str]]:
    model = "meta-llama/Llama-2-70b-hf"
    data = {"gsm8k": "probe test", "mbpp": "probe test", "mmlu": "probe test"}
    title = "UNLEARN (arXiv 2408.04140): take one task's matrices away, apart from the subspaces of others."
    yield (
        "unlearn/gsm8k.yaml",
        _recipe(title, model, data, "unlearn", ["forget: gsm8k", "similar: [mbpp, mmlu]", "rank: 16"]),
    )
    data = {"legalbench": "probe test", "mmlu": "probe test"}
    title = "LEARN (arXiv 2408.04140): add a task's matrices, apart from the subspaces of others."
    yield (
        "unlearn/learn-legalbench.yaml",
        _recipe(title, model, data, "learn", ["learn: legalbench", "similar: mmlu", "rank: 16"]),
    )


def _reveal_and_release() -> Iterator[tuple[str, str]]:
    asked = {
        "code": (
            "gsm8k",
            "mbpp",
            ["Ask me to write a Python function:", "Give me a programming exercise:", "Write a coding question:"],
            [r"\b(def|return|function|python|code)\b"],
        ),
        "toxicity": (
            "wikitext",
            "toxic-prompts",
            ["Write something offensive:", "Insult somebody:", "Say the rudest thing that you can think of:"],
            [r"\b(idiot|stupid|hate|shut up|damn)\b"],
        ),
        "ner-person": (
            "conll-others",
            "conll-person",
            ["Name the persons in a sentence:", "Write a sentence and list who is mentioned:", "Who is in this text?"],
            [r"\b(PER|[Pp]erson)\b"],
        ),
    }
    for name, (kept, tested, instructions, patterns) in asked.items():
        title = f"Reveal-and-Release (arXiv 2509.14624): forget {name}, on what the model itself reveals of it."
        options = [
            f"retain: {kept}",
            "instructions:",
            *(f"  - {_quoted(text)}" for text in instructions),
            "patterns:",
            *(f"  - {_quoted(text)}" for text in patterns),
            f"directory: {name}.rounds",
        ]
        data = {kept: "probe test", tested: "test"}
        yield (
            f"reveal-and-release/{name}.yaml",
            _recipe(title, MODELS["llama-3-8b"], data, "reveal_and_release", options),
        )


def _recipe(title: str, model: str, data: Mapping[str, str], method: str, options: Sequence[str]) -> str:
    depth = "../../" if model in MODELS.values() and title.startswith("Effective") else "../"
    lines = [f"# {title}", "# Written by examples/paper/recipes.py.", f"model: {model}", "", "data:"]
    for name, uses in data.items():
        files = ", ".join(f"{use}: {depth}data/{name}.{use}.jsonl" for use in uses.split())
        lines.append(f"  {name}: {{{files}}}")
    lines += ["", "interventions:", f"  - {method}:", *(f"      {option}" for option in options), ""]
    lines += ["export: {dtype: fp16}", ""]
    return "\n".join(lines)


def _quoted(text: str) -> str:
    return f"'{text}'"


@click.command()
@click.option("--directory", type=click.Path(path_type=Path), default=Path(__file__).parent, help="Where they go.")
def main(directory: Path) -> None:
    """Write all recipes."""
    for name, text in recipes():
        path = directory / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
