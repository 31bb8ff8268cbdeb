"""Scorers that recognise generated forget data without an example of it: by a description, or by unlikeness."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from bakeout.models.data.padding import right_padded
from bakeout.models.data.rows import Record
from bakeout.models.data.tokenizers.chat_template import render_chat
from bakeout.models.data.tokenizers.encoding import encode_prompt
from bakeout.models.data.tokenizers.tokenization import Tokenizer
from bakeout.models.errors import BakeoutError
from bakeout.models.network.devices import input_device
from bakeout.models.network.families import model_limits, text_config

# How much a question and the model's own answer look like what is to be forgotten: 0 (not at all) to 1.
Scorer = Callable[[str, str], float]

_COMPARED = 1000


def matching(patterns: Sequence[str]) -> Scorer:
    """A scorer by description: 1 where any regular expression is found in the question or the answer, else 0.

    Case is ignored unless a pattern contains ``(?-i:…)``.
    """
    compiled = [re.compile(pattern, re.IGNORECASE) for pattern in patterns]
    return lambda question, answer: float(any(p.search(question) or p.search(answer) for p in compiled))


def novelty(
    model: PreTrainedModel,
    tokenizer: Tokenizer,
    retain: Mapping[str, Sequence[Record]],
    *,
    chat: bool,
) -> Scorer:
    """A scorer by unlikeness: the share of retain prompts that lie closer to another one than a question lies to any.

    A question like those to retain can score anything between 0 and 1; one that is like none of them scores 1. This is
    a conformal test of being exchangeable with the retain prompts. Texts are compared by the model's own mean hidden
    states, standardised over the retain prompts and scaled to norm 1. At most 1,000 prompts are compared, evenly from
    every name. With ``chat`` a question is put to the model as a user's message, and bare too, as retain prompts may
    be: the nearer form counts. Our reading: the paper scores with a reward of its own for each of its tasks.

    Raises ``BakeoutError`` for fewer than two different retain prompts.
    """
    share = -(-_COMPARED // max(1, len(retain)))
    prompts: list[list[int]] = []
    for records in retain.values():
        prompts += [record.prompt_ids for record in records if record.prompt_ids][:share]
    if len({tuple(prompt) for prompt in prompts}) < 2:
        raise BakeoutError("Reveal: fewer than two retain prompts to compare with.", "Give more retain data.")
    states = mean_hidden_states(model, prompts)
    mean, deviation = states.mean(dim=0), states.std(dim=0)
    deviation = deviation.clamp(min=float(deviation.max()) * 1e-6)

    def standardised(rows: Tensor) -> Tensor:
        return nn.functional.normalize((rows - mean) / deviation, dim=1)

    kept = standardised(states)
    among = torch.cdist(kept, kept)
    among.fill_diagonal_(torch.inf)
    usual = among.min(dim=1).values

    def score(question: str, answer: str) -> float:
        del answer
        forms = mean_hidden_states(model, [encoded(question, tokenizer, chat=form) for form in {False, chat}])
        return float((usual < torch.cdist(standardised(forms), kept).min()).double().mean())

    return score


def served(text: str, tokenizer: Tokenizer, *, chat: bool) -> str:
    """``text`` as a server puts it to the model: as it is, or as a user's message in the chat template."""
    return render_chat(tokenizer, [{"role": "user", "content": text}], generation=True) if chat else text


def encoded(text: str, tokenizer: Tokenizer, *, chat: bool) -> list[int]:
    """The token ids of ``served``. The template writes the special tokens itself."""
    return encode_prompt(served(text, tokenizer, chat=chat), tokenizer, special=not chat)


@torch.no_grad()
def mean_hidden_states(model: PreTrainedModel, texts: Sequence[Sequence[int]], *, batch_size: int = 64) -> Tensor:
    """e(x) of each text: the mean of its tokens' last hidden states, float64 [texts, hidden] on the CPU."""
    limits, device = model_limits(model), input_device(model)
    # Gemma 3 and Llama 4 name another base than they have: for transformers, the model with its head is its own.
    base = model.get_decoder() if model.base_model is model else model.base_model
    for text in texts:
        limits.require(text, None, "A text")
    means = torch.empty((len(texts), text_config(model).hidden_size), dtype=torch.float64)
    order = sorted(range(len(texts)), key=lambda index: len(texts[index]))
    for start in range(0, len(order), batch_size):
        rows = order[start : start + batch_size]
        input_ids, mask = map(torch.from_numpy, right_padded([texts[row] for row in rows]))
        output = base(input_ids=input_ids.to(device), attention_mask=mask.to(device), use_cache=False)
        states = output.last_hidden_state.cpu().double()
        means[rows] = (states * mask[..., None]).sum(dim=1) / mask.sum(dim=1, keepdim=True)
    return means
