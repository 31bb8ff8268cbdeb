"""A ``Runner`` as lm-evaluation-harness asks a model: log-likelihoods of continuations, and text until a stop."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from lm_eval.api.model import TemplateLM
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window

from bakeout.export.evaluation.likelihood import log_probabilities
from bakeout.export.running.runner import Runner
from bakeout.export.running.sampling import Sampling
from bakeout.models.data.tokenizers.chat_answer import render_begun
from bakeout.models.data.tokenizers.chat_template import chosen_template, render_chat
from bakeout.models.errors import BakeoutError
from bakeout.models.progress import Track

# The harness's own default, for tasks that set none.
_MAX_NEW_TOKENS = 256


class HarnessModel(TemplateLM):  # type: ignore[misc] # the harness is not typed
    """The harness's model interface over ONNX Runtime. What is too long for the model loses its beginning."""

    def __init__(self, runner: Runner, *, batch_size: int, track: Track, description: str) -> None:
        super().__init__()
        self._runner = runner
        self._batch_size = batch_size
        self._track = track
        self._description = description
        # The harness depends on transformers, whose tokenizers also continue an answer that is begun.
        self.tokenizer: Any = runner.tokenizer
        self._longest = runner.limits.context or 1 << 30

    @property
    def eot_token_id(self) -> int:
        """The token that ends a text."""
        own = self.tokenizer.eos_token_id
        return min(self._runner.end_tokens) if own is None else int(own)

    @property
    def prefix_token_id(self) -> int:
        """The token that stands before a text without context."""
        begin = self.tokenizer.bos_token_id
        return self.eot_token_id if begin is None else int(begin)

    @property
    def tokenizer_name(self) -> str:
        """Part of the name under which the harness caches requests."""
        return str(self._runner.directory).replace("/", "__")

    def apply_chat_template(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
        """The conversation as the tokenizer's template renders it: to be answered, or its last message continued."""
        if add_generation_prompt:
            return render_chat(self.tokenizer, chat_history, generation=True)
        return render_begun(self.tokenizer, chat_history)

    def chat_template(self, chat_template: bool | str = False) -> str | None:
        """The source of the template, by which the harness knows results apart."""
        return chosen_template(self.tokenizer.chat_template) if chat_template else None

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **_: Any) -> list[int]:
        """Token ids; a text that begins with its own special token, as templates write it, gets no second one."""
        if add_special_tokens is None:
            begin = self.tokenizer.bos_token
            add_special_tokens = not (begin and string.startswith(begin))
        return [int(token) for token in self.tokenizer.encode(string, add_special_tokens=add_special_tokens)]

    def _loglikelihood_tokens(
        self, requests: Sequence[tuple[Any, list[int], list[int]]], **_: Any
    ) -> list[tuple[float, bool]]:
        """The summed log p of each continuation's tokens, and whether greedy decoding would generate them."""
        wholes = [(context + continuation)[-self._longest - 1 :][:-1] for _, context, continuation in requests]
        likelihoods = [(0.0, False)] * len(requests)
        read = self._runner.each_logits(wholes, batch_size=self._batch_size)
        for row, logits in self._shown(read, len(wholes)):
            targets = np.array(requests[row][2])
            if len(logits) < len(targets):
                raise BakeoutError(
                    "This graph gives the logits of the last token alone, and the task asks for more.",
                    "Export the graph with all logits.",
                )
            predicted = logits[len(logits) - len(targets) :]
            logarithms = log_probabilities(predicted)[np.arange(len(targets)), targets]
            likelihoods[row] = float(logarithms.sum()), bool((predicted.argmax(axis=-1) == targets).all())
        return likelihoods

    def loglikelihood_rolling(self, requests: Sequence[Any], disable_tqdm: bool = True) -> list[float]:
        """The summed log p of every token of each text, in windows where it is too long for the model."""
        windows, owners = [], []
        for number, request in enumerate(requests):
            (text,) = request.args
            tokens = self.tok_encode(text, add_special_tokens=False)
            rolled = get_rolling_token_windows(tokens, self.prefix_token_id, self._longest, context_len=1)
            for context, continuation in map(make_disjoint_window, rolled):
                windows.append((("", text), context, continuation))
                owners.append(number)
        likelihoods = self._loglikelihood_tokens(windows)
        totals = [0.0] * len(requests)
        for number, (logarithm, _) in zip(owners, likelihoods, strict=True):
            totals[number] += logarithm
        return totals

    def generate_until(self, requests: Sequence[Any], disable_tqdm: bool = True) -> list[str]:
        """The text that the model generates after each context, cut before the first of the task's stops."""
        answers = [""] * len(requests)
        alike: dict[str, list[int]] = {}
        for number, request in enumerate(requests):
            alike.setdefault(repr(sorted(request.args[1].items())), []).append(number)
        for numbers in alike.values():
            chunks = [numbers[start : start + self._batch_size] for start in range(0, len(numbers), self._batch_size)]
            for chunk in self._shown(chunks, len(chunks)):
                contexts = [requests[number].args[0] for number in chunk]
                generated = self._generate(contexts, requests[chunk[0]].args[1])
                for number, text in zip(chunk, generated, strict=True):
                    answers[number] = text
        return answers

    def _generate(self, contexts: Sequence[str], settings: dict[str, Any]) -> list[str]:
        stops = settings.get("until") or []
        stops = [stops] if isinstance(stops, str) else [stop for stop in stops if stop]
        new = int(settings.get("max_gen_toks", _MAX_NEW_TOKENS))
        temperature = float(settings.get("temperature", 0.0))
        drawn = bool(settings.get("do_sample", temperature > 0)) and temperature > 0
        reach = max((len(stop) for stop in stops), default=0) + 1

        def stopped(tokens: Sequence[int]) -> bool:
            # A stop has no more tokens than characters, so it lies in the last of them.
            tail = self.tokenizer.decode(list(tokens[-reach:]))
            return any(stop in tail for stop in stops)

        prompts = [self.tok_encode(text)[-max(self._longest - new, 1) :] or [self.prefix_token_id] for text in contexts]
        answers = self._runner.generate(
            prompts,
            new,
            sampling=Sampling(temperature, float(settings.get("top_p", 1.0))) if drawn else None,
            stop=stopped if stops else None,
            batch_size=self._batch_size,
        )
        texts = []
        for tokens in answers:
            text = str(self.tokenizer.decode(tokens, skip_special_tokens=True))
            for stop in stops:
                text = text.split(stop)[0]
            texts.append(text)
        return texts

    def _shown(self, items: Iterable[Any], total: int) -> Iterable[Any]:
        return self._track(items, f"{self._description}: tasks", total)
