"""A tokenizer that transformers rebuilds as its class wants it, and that loses the spaces its own file keeps."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from bakeout.models.errors import BakeoutError

if TYPE_CHECKING:
    from bakeout.models.data.tokenizers.tokenization import Tokenizer

_FILE = "tokenizer.json"
_TEXT = "two words"


def require_spaces_kept(tokenizer: Tokenizer, directory: Path) -> None:
    """Raise ``BakeoutError`` where ``tokenizer`` drops the space of a text that the file in ``directory`` keeps.

    Transformers 5.17, for one, rebuilds every `LlamaTokenizer` for SentencePiece. A byte-level one, which is saved
    under that name where a model came as GGUF, then reads texts without their spaces, and what is fitted on those seems
    to work.
    """
    from tokenizers import Tokenizer as Backend

    ids = tokenizer.encode(_TEXT, add_special_tokens=False)
    if " " in tokenizer.decode(ids) or not (directory / _FILE).is_file():
        return
    backend = Backend.from_file(str(directory / _FILE))
    if " " in backend.decode(backend.encode(_TEXT, add_special_tokens=False).ids):
        raise BakeoutError(
            f"{directory}: transformers reads the tokenizer as a {type(tokenizer).__name__}, and loses all spaces.",
            "Set `tokenizer_class` to PreTrainedTokenizerFast in tokenizer_config.json.",
        )
