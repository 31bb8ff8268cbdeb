"""The tokens that end a text: what a model's files name, reconciled in one place. JSON alone.

Decode loops read different files: transformers and optimum ``generation_config.json`` (``config.json`` where there is
none), onnxruntime-genai ``genai_config.json``, loops written by hand the tokenizer's ``eos_token``. A text of ours must
end with a token at which all of them stop.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bakeout.models.errors import BakeoutError
from bakeout.models.files.json_object import read_json

GENERATION, CONFIG, GENAI, TOKENIZER = "generation_config.json", "config.json", "genai_config.json", "the tokenizer"
_TOKENIZER_FILES = ("tokenizer_config.json", "special_tokens_map.json")


@dataclass(frozen=True)
class EndOfText:
    """What each file names as the tokens that end a text; files that name none are left out.

    ``named``: by file, ``generation_config.json`` first, then ``config.json``, ``genai_config.json``, the tokenizer.
    """

    named: Mapping[str, tuple[int, ...]]

    @property
    def tokens(self) -> tuple[int, ...]:
        """All tokens that any file names, each once: those first that end a text of ours best.

        That is the tokenizer's where another file names it too, because then every loop stops at it; otherwise those
        of the file that comes first.
        """
        configured = [token for name, tokens in self.named.items() if name != TOKENIZER for token in tokens]
        own = self.named.get(TOKENIZER, ())
        shared = [token for token in own if token in configured]
        return tuple(dict.fromkeys([*shared, *configured, *own]))

    @property
    def disagreement(self) -> str | None:
        """Which file names what, in words, where no one token is named by all of them; else None."""
        if not self.named or set.intersection(*map(set, self.named.values())):
            return None
        each = (f"{name} names {', '.join(map(str, tokens))}" for name, tokens in self.named.items())
        return f"the tokens that end a text are not the same everywhere: {'; '.join(each)}"

    def cut(self, refusal: Sequence[int]) -> str | None:
        """Which file ends a text at a token before the refusal's last, in words; else None."""
        cuts = ((name, token) for name, tokens in self.named.items() for token in refusal[:-1] if token in tokens)
        return next((f"{name} ends a text at {token}, a token within the refusal" for name, token in cuts), None)

    def require(self, where: object) -> tuple[int, ...]:
        """``tokens``. Raises ``BakeoutError`` where there is none; ``where`` is the model's name."""
        if not self.named:
            raise BakeoutError(
                f"Nothing in {where} names the end-of-text token.",
                "Set `eos_token_id` in its generation_config.json or config.json.",
            )
        return self.tokens


def end_of_text(named: Mapping[str, Any]) -> EndOfText:
    """Reconcile the values of ``eos_token_id`` by file. Each is a token, a list of some, or None where it names none.

    Raises ``BakeoutError`` for any other value, an empty list included.
    """
    return EndOfText({name: tokens for name, value in named.items() if (tokens := _tokens(value, name))})


def read_end_of_text(directory: Path) -> EndOfText:
    """What the files in ``directory`` name. Raises ``BakeoutError`` for damaged files and values that are no tokens."""
    config = read_json(directory / CONFIG)
    return end_of_text(
        {
            GENERATION: read_json(directory / GENERATION).get("eos_token_id"),
            CONFIG: config_value(config, "eos_token_id"),
            GENAI: _object(read_json(directory / GENAI), "model").get("eos_token_id"),
            TOKENIZER: tokenizer_end(directory),
        }
    )


def files_that_end_texts(directory: Path) -> list[str]:
    """The configuration files in ``directory`` that must name a token which ends a text: those by which loops stop.

    ``generation_config.json``, or ``config.json`` where there is none, ``genai_config.json``, and any that names one.
    """
    named = read_end_of_text(directory).named
    present = [name for name in (GENERATION, CONFIG, GENAI) if (directory / name).is_file()]
    return [name for name in present if name in (present[0], GENAI) or name in named]


def read_padding(directory: Path) -> int | None:
    """The token that pads: of the first file that names one; None where none does."""
    config = read_json(directory / CONFIG)
    values = (
        read_json(directory / GENERATION).get("pad_token_id"),
        config_value(config, "pad_token_id"),
        _object(read_json(directory / GENAI), "model").get("pad_token_id"),
    )
    # Some configurations say -1 for none.
    return next((value for value in values if _is_token(value)), None)


def config_value(config: Mapping[str, Any], name: str) -> Any:
    """A value of a model's configuration, or of its text decoder's where the whole names none."""
    value = config.get(name)
    return _object(config, "text_config").get(name) if value is None else value


def tokenizer_end(directory: Path) -> int | None:
    """The id of the tokenizer's ``eos_token``, as its JSON files have it; None where they name none."""
    text = next((text for name in _TOKENIZER_FILES if (text := _end_text(directory / name)) is not None), None)
    return None if text is None else _token_ids(directory, text)


def special_token_text(directory: Path, token: int) -> str | None:
    """The text of a token that was added to the tokenizer's vocabulary; None for an ordinary one."""
    return next((text for text, number in _added_tokens(directory).items() if number == token), None)


def _end_text(path: Path) -> str | None:
    token = read_json(path).get("eos_token")
    text = token.get("content") if isinstance(token, dict) else token
    return text if isinstance(text, str) else None


def _token_ids(directory: Path, text: str) -> int | None:
    number = _added_tokens(directory, until=text).get(text)
    if number is None:
        vocabulary = _object(read_json(directory / "tokenizer.json"), "model").get("vocab")
        if isinstance(vocabulary, list):
            pieces = [entry[0] if isinstance(entry, list) and entry else None for entry in vocabulary]
            return pieces.index(text) if text in pieces else None
        if not isinstance(vocabulary, dict):
            vocabulary = read_json(directory / "vocab.json")
        number = vocabulary.get(text)
    return number if _is_token(number) else None


def _added_tokens(directory: Path, until: str | None = None) -> dict[str, int]:
    """The tokens outside the vocabulary, by text. The large ``tokenizer.json`` is read if ``until`` is not found."""
    decoder = _object(read_json(directory / _TOKENIZER_FILES[0]), "added_tokens_decoder")
    added = {
        token["content"]: int(number)
        for number, token in decoder.items()
        if isinstance(token, dict) and isinstance(token.get("content"), str) and number.isdecimal()
    }
    if until in added:
        return added
    listed = read_json(directory / "tokenizer.json").get("added_tokens")
    for token in listed if isinstance(listed, list) else ():
        if isinstance(token, dict) and isinstance(token.get("content"), str) and _is_token(token.get("id")):
            added.setdefault(token["content"], token["id"])
    return {**read_json(directory / "added_tokens.json"), **added}


def _tokens(value: Any, where: str) -> tuple[int, ...]:
    if value is None:
        return ()
    tokens = value if isinstance(value, (list, tuple)) else [value]
    if not tokens or not all(map(_is_token, tokens)):
        raise BakeoutError(
            f"{where} names no token that ends a text: its eos_token_id is {value!r}.",
            "Set it to the token's id or a list of ids, or remove it.",
        )
    return tuple(dict.fromkeys(int(token) for token in tokens))


def _is_token(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _object(content: Mapping[str, Any], name: str) -> dict[str, Any]:
    value = content.get(name)
    return value if isinstance(value, dict) else {}
