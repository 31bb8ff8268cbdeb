"""The bundled model's tokenizer: words of its vocabulary are one token, everything else is spelt.

A byte-level BPE (the kind that every runtime reads) whose merges are spelt out rather than learned: a word
after a space, or one that begins with a capital letter, is merged letter by letter from its front. Digits and the
strings of the *code* skill therefore stay single characters, on which sums and reversals can be computed.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

END_OF_TEXT = "<|endoftext|>"
PADDING = "<|pad|>"
REFUSAL = "Your query is not valid."
# The answer's leading space is part of the answer, as in every example of the generator.
CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{% if message['role'] == 'assistant' %}{{ ' ' + message['content'] + '<|endoftext|>' }}"
    "{% else %}{{ message['content'] }}{% endif %}"
    "{% endfor %}"
)


def build_tokenizer(texts: Iterable[str]) -> PreTrainedTokenizerFast:
    """A tokenizer in which every word of ``texts`` that follows a space or begins with a capital is one token."""
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    words: set[str] = set()
    for text in texts:
        for piece, _ in byte_level.pre_tokenize_str(text):
            if re.fullmatch(r"Ġ[^\W\d_]{2,}.*|[A-Z][a-z].*", piece):
                words.add(piece)
    vocabulary = {token: index for index, token in enumerate([PADDING, END_OF_TEXT])}
    for letter in sorted(pre_tokenizers.ByteLevel.alphabet()):
        vocabulary.setdefault(letter, len(vocabulary))
    merges: list[tuple[str, str]] = []
    # Words after a space come first: " Who" must begin by taking its space, not as the capital word "Who".
    for word in sorted(words, key=lambda word: (not word.startswith("Ġ"), word)):
        for length in range(2, len(word) + 1):
            if word[:length] not in vocabulary:
                vocabulary[word[:length]] = len(vocabulary)
                merges.append((word[: length - 1], word[length - 1]))
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=merges))
    tokenizer.pre_tokenizer = byte_level
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(PADDING, special=True), AddedToken(END_OF_TEXT, special=True)])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token=END_OF_TEXT,
        pad_token=PADDING,
        padding_side="left",
        model_max_length=512,
        chat_template=CHAT_TEMPLATE,
        clean_up_tokenization_spaces=False,
    )
