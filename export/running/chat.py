"""Talking to an artifact: prompts through the tokenizer's chat template, answers piece by piece."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from bakeout.export.running.runner import Runner
from bakeout.export.running.sampling import Sampling
from bakeout.models.data.tokenizers.chat_template import render_chat
from bakeout.models.data.tokenizers.encoding import encode_prompt
from bakeout.models.data.tokenizers.tokenization import Tokenizer
from bakeout.models.errors import BakeoutError

Message = dict[str, str]
# The character that a decoder puts where bytes of a character are still missing.
_INCOMPLETE = "\ufffd"
_LONGEST_CHARACTER = 4


@dataclass
class Chat:
    """A conversation with a model. Without a chat template, or as ``single_turn``, every prompt stands alone.

    The chat template of an artifact leaves out turns that it refused (``baking.refused_turns``).
    """

    runner: Runner
    max_new_tokens: int = 256
    sampling: Sampling | None = None
    single_turn: bool = False

    def __post_init__(self) -> None:
        self.messages: list[Message] = []

    @property
    def remembers(self) -> bool:
        """Whether a prompt is answered with the earlier ones as context."""
        return bool(self.runner.tokenizer.chat_template) and not self.single_turn

    def forget(self) -> None:
        """Begin a new conversation."""
        self.messages = []

    def answer(self, prompt: str) -> Iterator[str]:
        """The answer to a prompt, piece by piece; put together, the pieces are the text."""
        if not self.remembers:
            self.forget()
        asked = [*self.messages, {"role": "user", "content": prompt}]
        tokens = prompt_tokens(self.runner.tokenizer, asked)
        answer = ""
        for piece in pieces(
            self.runner.tokenizer, self.runner.stream(tokens, self.max_new_tokens, sampling=self.sampling)
        ):
            answer += piece
            yield piece
        self.messages = [*asked, {"role": "assistant", "content": answer.strip()}]


def prompt_tokens(tokenizer: Tokenizer, messages: Sequence[Message]) -> list[int]:
    """The conversation as served to the model: through the chat template or, if there is none, the last message.

    Raises ``BakeoutError`` where the template refuses the conversation, or nothing is left of it.
    """
    if not tokenizer.chat_template:
        tokens = encode_prompt(messages[-1]["content"], tokenizer)
    else:
        # The template writes the special tokens itself.
        tokens = encode_prompt(render_chat(tokenizer, messages, generation=True), tokenizer, special=False)
    if not tokens:
        raise BakeoutError("The prompt has no tokens.", "Write something.")
    return tokens


def pieces(tokenizer: Tokenizer, tokens: Iterator[int]) -> Iterator[str]:
    """Token ids as text, as they come: a piece is held back until its characters are whole.

    No space is cleaned up: a later token would change what was shown.
    """
    seen: list[int] = []
    text = shown = ""
    for token in tokens:
        seen.append(token)
        text = str(tokenizer.decode(seen, skip_special_tokens=True, clean_up_tokenization_spaces=False))
        tail = text[len(shown) :]
        # Bytes that never become a character are shown as they are, in time.
        if tail.endswith(_INCOMPLETE) and len(tail) < _LONGEST_CHARACTER:
            continue
        if tail:
            yield tail
            shown = text
    if rest := text[len(shown) :]:
        yield rest
