"""What the rest of the code asks of a tokenizer, and where tokenizers come from."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Protocol

from bakeout.models.data.tokenizers.mistral_warning import without_false_alarms
from bakeout.models.data.tokenizers.spaces import require_spaces_kept
from bakeout.models.data.tokenizers.token_lengths import require_short_tokens
from bakeout.models.errors import BakeoutError
from bakeout.models.extras import is_installed

Message = dict[str, str]

# Words, numbers, code, spaces, accents, scripts with and without spaces, a joined emoji.
_SAMPLES = (
    "Now, fish and house in German?",
    "What is 12 + 345,67?\n\n    return x_1 == 'y'\t# done",
    "  Größe, naïve, Ελλάδα, Россия, שלום, العربية",
    "東京の天気は。 안녕하세요 สวัสดี हिन्दी 👩‍👩‍👧 \u00a0½",
)


class Tokenizer(Protocol):
    """A tokenizer: one of transformers', or ``JsonTokenizer``, which needs no transformers."""

    @property
    def bos_token(self) -> str | None:
        """The token that begins a text, or None."""

    @property
    def bos_token_id(self) -> int | None:
        """Its id."""

    @property
    def eos_token_id(self) -> int | None:
        """The id of the token that ends a text, or None."""

    # The template of chats, or several by name; empty or None where there is none.
    chat_template: Any

    @property
    def special_tokens_map(self) -> dict[str, Any]:
        """The special tokens by name, for templates of chats."""

    def encode(self, text: str, *, add_special_tokens: bool = True) -> list[int]:
        """The token ids of a text, with the special tokens around it that the model was trained with."""

    def decode(
        self,
        token_ids: list[int],
        *,
        skip_special_tokens: bool = False,
        clean_up_tokenization_spaces: bool | None = None,
    ) -> str:
        """The text of token ids. Spaces before punctuation are removed where asked for, by default as configured."""

    def apply_chat_template(
        self, conversation: list[Message], *, tokenize: bool = True, add_generation_prompt: bool = False
    ) -> object:
        """A chat as text (``tokenize=False``) or token ids. ``render_chat`` says in one line what a template raises."""


def load_tokenizer(directory: Path) -> Tokenizer:
    """The tokenizer in ``directory``: transformers' where it is installed, else ``JsonTokenizer``. Needs no torch.

    Raises ``BakeoutError`` where there is none, and for one that needs transformers where it is missing.
    """
    if not is_installed("transformers"):
        from bakeout.models.data.tokenizers.json_tokenizer import JsonTokenizer

        return JsonTokenizer(directory)
    from bakeout.models.data.tokenizers.version_5 import is_of_version_5, read_by_version_4

    try:
        require_short_tokens(directory)
        with without_false_alarms(directory):
            tokenizer = read_by_version_4(directory) if is_of_version_5(directory) else _read(directory)
        # Settings of odd types show when they are used.
        tokenizer.decode(tokenizer.encode("a"), skip_special_tokens=True)
        require_spaces_kept(tokenizer, directory)
        return tokenizer
    except BakeoutError:
        raise
    # The tokenizers library raises nothing narrower, and transformers whatever a file of odd types leads to.
    except Exception as error:  # noqa: BLE001
        raise BakeoutError(
            f"{directory}: the tokenizer cannot be loaded ({(str(error).strip().splitlines() or ['?'])[0]}).",
            "Put the model's tokenizer.json and tokenizer_config.json beside its config.json.",
        ) from None


def differing_sample(one: Tokenizer, other: Tokenizer) -> str | None:
    """The first text of ours for which the two give other tokens; None where there is none."""
    return next((text for text in _SAMPLES if one.encode(text) != other.encode(text)), None)


def _read(directory: Path) -> Tokenizer:
    from transformers import AutoTokenizer

    tokenizer: Tokenizer = AutoTokenizer.from_pretrained(directory, local_files_only=True, trust_remote_code=False)
    return tokenizer
