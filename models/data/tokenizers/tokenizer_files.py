"""The JSON files that describe a tokenizer, read as transformers 4.57 reads them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, TypeAlias

from tokenizers import AddedToken

from bakeout.models.errors import BakeoutError
from bakeout.models.extras import installing
from bakeout.models.files.reading import parse_json, read_regular

# A special token: as a string, if no file defines how it is matched in a text.
Special: TypeAlias = "AddedToken | str"

_NAMES = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
_MORE = "additional_special_tokens"
_END_OF_TEXT = dict.fromkeys(("unk_token", "bos_token", "eos_token"), "<|endoftext|>")
_SENTENCE_PIECE = {"unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>"}
# The classes whose rules are known here, and what each sets where the configuration is silent. Those with
# ``add_bos_token`` put special tokens around a text themselves, regardless of tokenizer.json.
_CLASSES: Mapping[str, Mapping[str, Any]] = MappingProxyType(
    {
        "BloomTokenizer": {**_SENTENCE_PIECE, "pad_token": "<pad>"},
        "CodeGenTokenizer": _END_OF_TEXT,
        "CohereTokenizer": {
            "unk_token": "<UNK>",
            "bos_token": "<BOS_TOKEN>",
            "eos_token": "<|END_OF_TURN_TOKEN|>",
            "add_bos_token": True,
        },
        "GPT2Tokenizer": _END_OF_TEXT,
        "GPTNeoXTokenizer": {**_END_OF_TEXT, "add_bos_token": False},
        "GemmaTokenizer": {
            "unk_token": "<unk>",
            "bos_token": "<bos>",
            "eos_token": "<eos>",
            "pad_token": "<pad>",
            "add_bos_token": True,
        },
        "LlamaTokenizer": {**_SENTENCE_PIECE, "add_bos_token": True, "add_prefix_space": None},
        "PreTrainedTokenizer": {},
        "Qwen2Tokenizer": dict.fromkeys(("unk_token", "eos_token", "pad_token"), "<|endoftext|>"),
    }
)
_INSTALL = f"Install transformers, which can: {installing('transformers')}."


@dataclass(frozen=True)
class TokenizerFiles:
    """The content of the files beside ``tokenizer.json``.

    ``settings``: tokenizer_config.json, with the defaults of its class; ``frames``: whether the class itself puts
    special tokens around a text, regardless of tokenizer.json; ``added``: tokens outside the vocabulary by id;
    ``special``: the special tokens by name; ``more_special``: those without a name; ``chat_template``: the template of
    chats, or several by their names; empty or None where there is none.
    """

    settings: Mapping[str, Any]
    frames: bool
    added: Mapping[int, AddedToken]
    special: Mapping[str, Special]
    more_special: Sequence[Special]
    chat_template: str | Mapping[str, str] | None


@contextmanager
def damaged_files(directory: Path) -> Iterator[None]:
    """Raise as ``BakeoutError`` what files in ``directory`` lead to whose values are of other types than they must."""
    try:
        yield
    except (ArithmeticError, AttributeError, LookupError, OSError, TypeError, ValueError) as error:
        reason = " ".join(str(error).split())[:200]
        raise BakeoutError(
            f"{directory}: the tokenizer's files are damaged ({type(error).__name__}: {reason}).",
            "Copy the tokenizer again.",
        ) from None


def read_tokenizer_files(directory: Path) -> TokenizerFiles:
    """Read the files. Raises ``BakeoutError`` for damaged ones, and for a class whose rules are not known here."""
    config = read_object(directory / "tokenizer_config.json")
    defaults = _class_defaults(config, directory)
    settings = {**defaults, **config}
    if "added_tokens_decoder" in settings:
        added = {int(place): AddedToken(**token) for place, token in settings["added_tokens_decoder"].items()}
    else:
        # As tokenizers were saved before transformers 4.34.
        _merge_special_tokens_map(settings, directory)
        added = _older_added_tokens(settings, directory)
    known = {token.content: token for token in added.values()}
    extra = settings.get("extra_special_tokens")
    special = {name: settings[name] for name in _NAMES if settings.get(name)} | (
        extra if isinstance(extra, dict) else {}
    )
    return TokenizerFiles(
        settings,
        "add_bos_token" in defaults,
        added,
        {name: known.get(_content(token), _special(token)) for name, token in special.items()},
        [_special(token) for token in settings.get(_MORE) or []],
        _chat_templates(settings, directory),
    )


def read_object(path: Path) -> dict[str, Any]:
    """A file's JSON object; an empty one where there is no such file. Raises ``BakeoutError`` for a damaged one."""
    try:
        content = parse_json(read_regular(path).decode("utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise BakeoutError(f"{path} cannot be read ({error}).", "Copy the tokenizer again.") from None
    if not isinstance(content, dict):
        raise BakeoutError(f"{path} is not a JSON object.", "Copy the tokenizer again.")
    return content


def _class_defaults(config: Mapping[str, Any], directory: Path) -> Mapping[str, Any]:
    name = str(config.get("tokenizer_class", "")).removesuffix("Fast")
    if name not in _CLASSES:
        raise BakeoutError(f"{directory}: the tokenizer's class {name!r} cannot be read by Bakeout alone.", _INSTALL)
    # For a prefix space these classes build another tokenizer than tokenizer.json's.
    space = config.get("add_prefix_space")
    rebuilt = space is not None if name == "LlamaTokenizer" else space and name in ("BloomTokenizer", "CohereTokenizer")
    if rebuilt or config.get("from_slow"):
        raise BakeoutError(f"{directory}: the tokenizer differs from its tokenizer.json.", _INSTALL)
    return _CLASSES[name]


def _merge_special_tokens_map(settings: dict[str, Any], directory: Path) -> None:
    for name, value in read_object(directory / "special_tokens_map.json").items():
        if name == _MORE:
            known = settings.get(_MORE) or []
            settings[_MORE] = [*known, *(token for token in value if token not in known)]
        else:
            settings[name] = value


def _older_added_tokens(settings: Mapping[str, Any], directory: Path) -> dict[int, AddedToken]:
    special = {_content(settings[name]) for name in _NAMES if settings.get(name)}
    special |= {_content(token) for token in settings.get(_MORE) or []}
    added = {
        place: AddedToken(content, normalized=content not in special, special=content in special)
        for content, place in read_object(directory / "added_tokens.json").items()
    }
    for token in read_object(directory / "tokenizer.json").get("added_tokens", []):
        added[token.pop("id")] = AddedToken(**token)
    return added


def _special(token: str | Mapping[str, Any]) -> Special:
    if isinstance(token, str):
        return token
    flags = {key: value for key, value in token.items() if key not in ("__type", "special")}
    return AddedToken(**flags, special=True)


def _content(token: str | Mapping[str, Any]) -> str:
    return token if isinstance(token, str) else str(token["content"])


def _chat_templates(settings: Mapping[str, Any], directory: Path) -> str | dict[str, str] | None:
    """The templates in files of their own, else the configuration's: one, or several by their names."""
    own = directory / "chat_template.jinja"
    named = {path.stem: path for path in sorted((directory / "additional_chat_templates").glob("*.jinja"))}
    files = ({"default": own} if own.is_file() else {}) | named
    templates: Any = {name: read_regular(path).decode("utf-8") for name, path in files.items()}
    if not templates:
        templates = settings.get("chat_template")
        if isinstance(templates, list):
            return {str(template["name"]): str(template["template"]) for template in templates}
        return None if templates is None else str(templates)
    return str(templates["default"]) if templates.keys() == {"default"} else templates
