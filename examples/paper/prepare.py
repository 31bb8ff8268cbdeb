"""The papers' data as the recipes want it, from local copies of the public data sets. Nothing is downloaded.

    python examples/paper/prepare.py DIRECTORY

A data set whose file is not in DIRECTORY is left out, with a message. Where the parts are not separate files, rows
are dealt in their order: 60 % probe, 20 % calibration, 20 % test.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click

LANGUAGES = ["en", "de", "es", "hi", "zh", "vi", "ar"]
# Rows of a part, at most: probing is done after some thousands.
MOST = 2000

Rows = list[dict[str, Any]]
Read = Callable[[Path], Iterable[dict[str, Any]]]


@dataclass(frozen=True)
class Source:
    """A data set: its file, how it is read, and the file that is its test part, where there is one."""

    file: str
    read: Read
    test: str | None = None


def jsonl(path: Path) -> Iterator[dict[str, Any]]:
    """The rows of a JSONL file."""
    for line in path.read_text(encoding="utf-8").splitlines():
        if line.strip():
            yield json.loads(line)


def gsm8k(path: Path) -> Iterator[dict[str, Any]]:
    """Questions and worked answers."""
    for row in jsonl(path):
        yield {"prompt": f"Question: {row['question']}\nAnswer:", "response": f" {row['answer']}"}


def mbpp(path: Path) -> Iterator[dict[str, Any]]:
    """Descriptions and functions."""
    for row in jsonl(path):
        code = row["code"].replace("\r\n", "\n")
        yield {"prompt": f'"""\n{row["text"]}\n"""\n', "response": code}


def mmlu(path: Path) -> Iterator[dict[str, Any]]:
    """Questions with four choices, answered with a letter."""
    for row in jsonl(path):
        choices = "\n".join(f"{letter}. {text}" for letter, text in zip("ABCD", row["choices"], strict=True))
        yield {"prompt": f"{row['question']}\n{choices}\nAnswer:", "response": f" {'ABCD'[row['answer']]}"}


def mlqa(path: Path) -> Iterator[dict[str, Any]]:
    """Questions about a text, in the form of SQuAD: its own language asks and answers."""
    for article in json.loads(path.read_text(encoding="utf-8"))["data"]:
        for paragraph in article["paragraphs"]:
            for question in paragraph["qas"]:
                prompt = f"{paragraph['context']}\n{question['question']}\n"
                yield {"prompt": prompt, "response": question["answers"][0]["text"]}


def tofu(path: Path) -> Iterator[dict[str, Any]]:
    """Questions about authors who do not exist, as turns of a conversation."""
    for row in jsonl(path):
        yield _conversation(row["question"], row["answer"])


def toxic(path: Path) -> Iterator[dict[str, Any]]:
    """RealToxicityPrompts: the beginning of a text and how it went on."""
    for row in jsonl(path):
        yield {"prompt": row["prompt"]["text"], "response": row["continuation"]["text"]}


def as_they_are(path: Path) -> Iterator[dict[str, Any]]:
    """Rows that are as recipes take them: `prompt` and `response`, `text`, or `messages`."""
    yield from jsonl(path)


def unverifiable() -> Rows:
    """Questions that nobody can answer, as LUNAR's reference set: about what was never written down."""
    asked = ["What did {0} eat on the first morning in {1}?", "Which coin lay in the pocket of {0} at {1}?"]
    asked += ["What did {0} whisper to the night porter in {1}?", "How many steps did {0} walk in {1} that year?"]
    people = ["the third clerk", "Mrs Aldous Prynne", "the ferryman", "a boy called Ott", "the tuner of pianos"]
    places = ["Vellmar", "the house at Tarn End", "Port Issel", "the winter of the flood", "Karsk"]
    return [
        _conversation(question.format(person, place), "I do not know. I have no information about that.")
        for question in asked
        for person in people
        for place in places
    ]


SOURCES: Mapping[str, Source] = {
    "gsm8k": Source("gsm8k_train.jsonl", gsm8k, "gsm8k_test.jsonl"),
    "mbpp": Source("mbpp.jsonl", mbpp),
    "mmlu": Source("mmlu_test.jsonl", mmlu),
    **{f"mlqa-{one}": Source(f"test-context-{one}-question-{one}.json", mlqa) for one in LANGUAGES},
    "tofu-forget": Source("forget05.jsonl", tofu),
    "tofu-retain": Source("retain95.jsonl", tofu),
    "legalbench": Source("legalbench.jsonl", as_they_are),
    "wikitext": Source("wikitext.jsonl", as_they_are),
    "toxic-prompts": Source("realtoxicityprompts.jsonl", toxic),
    "conll-person": Source("conll2003_person.jsonl", as_they_are),
    "conll-others": Source("conll2003_others.jsonl", as_they_are),
}


def parts(name: str, directory: Path) -> dict[str, Rows]:
    """A data set's rows by use; empty where its file is not there."""
    source = SOURCES[name]
    if not (directory / source.file).is_file():
        return {}
    rows = list(source.read(directory / source.file))
    test = directory / source.test if source.test else None
    if test is not None and test.is_file():
        return {
            "probe": rows[: len(rows) * 3 // 4],
            "calibration": rows[len(rows) * 3 // 4 :],
            "test": [*source.read(test)],
        }
    first, second = len(rows) * 3 // 5, len(rows) * 4 // 5
    return {"probe": rows[:first], "calibration": rows[first:second], "test": rows[second:]}


def _conversation(question: str, answer: str) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]}


@click.command()
@click.argument("source", type=click.Path(path_type=Path, exists=True, file_okay=False))
@click.option("-o", "--output", type=click.Path(path_type=Path), default=Path(__file__).parent / "data")
def main(source: Path, output: Path) -> None:
    """Write what the recipes read, from the files in SOURCE."""
    output.mkdir(parents=True, exist_ok=True)
    found = {name: parts(name, source) for name in SOURCES} | {"unverifiable": {"probe": unverifiable()}}
    for name, by_use in found.items():
        for use, rows in by_use.items():
            text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows[:MOST])
            (output / f"{name}.{use}.jsonl").write_text(text, encoding="utf-8")
        counted = ", ".join(f"{min(len(rows), MOST)} {use}" for use, rows in by_use.items())
        click.echo(f"{name}: {counted or 'left out, there is no ' + SOURCES[name].file}")


if __name__ == "__main__":
    main()
