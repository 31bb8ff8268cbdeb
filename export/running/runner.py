"""Run a decoder graph with ONNX Runtime: a session, and a batched decode loop whose cache stays on the device.

Nothing here knows of interventions: a baked graph needs no code of ours beside it. Needs neither torch nor
transformers' models; the tokenizer is loaded when it is first asked for.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from bakeout.export.artifacts.model_source import find_graph
from bakeout.export.artifacts.onnx_layout import graphs_of, home_of
from bakeout.export.running.adapter_file import read_adapter
from bakeout.export.running.batching import batches
from bakeout.export.running.cache_entries import TYPES, CacheEntry, cache_entries, told_sizes
from bakeout.export.running.sampling import Choose, Given, Integers, Logits, Sampling, greedy
from bakeout.export.running.session import CANNOT_RUN, cannot_run, open_session
from bakeout.graph_passes.graph.exporter_names import LOGITS_TO_KEEP, MERGED, past_name, present_name
from bakeout.models.checkpoint.end_of_text import read_end_of_text, read_padding
from bakeout.models.data.limits import Limits
from bakeout.models.data.padding import left_padded
from bakeout.models.errors import BakeoutError
from bakeout.models.files.json_object import read_json

if TYPE_CHECKING:
    from bakeout.models.data.tokenizers.chat_options import ChatTemplateOptions
    from bakeout.models.data.tokenizers.tokenization import Tokenizer

_logger = logging.getLogger(__name__)
# Keys and values so far, by the name of the input that takes them; they stay where the provider computes.
Cache = Mapping[str, onnxruntime.OrtValue]

_INPUTS = ("input_ids", "attention_mask", "position_ids", "token_type_ids", "cache_position", *LOGITS_TO_KEEP)


@dataclass(frozen=True)
class Step:
    """The results of one run of the graph.

    ``logits``: float32 [batch, new tokens (1 where the graph gives the last's alone), vocabulary]; ``cache``: what to
    go on with; ``others``: its other outputs: ``refused`` and ``margin`` of a graph baked with ``--monitor``.
    """

    logits: Logits
    cache: Cache
    others: Mapping[str, NDArray[Any]]

    def of_rows(self, rows: NDArray[np.intp]) -> Step:
        """These rows of the batch, which may repeat; in the processor's memory."""
        cache = {
            name: onnxruntime.OrtValue.ortvalue_from_numpy(value.numpy()[rows]) for name, value in self.cache.items()
        }
        return Step(self.logits[rows], cache, {name: values[rows] for name, values in self.others.items()})


class Runner:
    """An ONNX decoder in an ONNX Runtime session: any directory or file with optimum's inputs and outputs.

    Inputs ``input_ids``, ``attention_mask``, ``position_ids`` where the graph takes them (``token_type_ids``,
    ``cache_position`` and ``num_logits_to_keep`` likewise), and past keys and values where it has a cache; outputs
    ``logits`` and the present ones. Of a pair, ``decode.onnx`` beside ``prefill.onnx``, the first graph reads a text,
    and the second goes on from the cache that it leaves. CUDA is used where ONNX Runtime has it; ``provider`` names the
    execution provider that runs. ``threads`` bounds ONNX Runtime's threads; ``graph`` is run in place of the file's
    content: an edited copy, whose data files are those beside ``path``, or in the folder ``data``; ``chat_template``
    chooses the template of chats. ``mapped`` is for few runs of large graphs: weights stay in their files, and nothing
    is computed of them beforehand, such as float32 ones for a processor that lacks float16.

    >>> runner = bakeout.Runner("unlearned")
    >>> runner.answer("Now, fish and house in German?")
    'Fisch und Haus'
    >>> prompt = runner.tokenizer.encode("Now, fish and house in German?")
    >>> (tokens,) = runner.generate([prompt], max_new_tokens=8)
    >>> runner.tokenizer.decode(tokens, skip_special_tokens=True)
    ' Fisch und Haus'

    Raises ``BakeoutError`` when ``path`` holds no graph that ONNX Runtime can run as a decoder of text.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        threads: int | None = None,
        graph: bytes | None = None,
        data: Path | None = None,
        chat_template: ChatTemplateOptions | None = None,
        mapped: bool = False,
    ) -> None:
        self._chat_template = chat_template
        self.path = find_graph(Path(path))
        self.directory = home_of(self.path)
        ends, padding = read_end_of_text(self.directory).require(self.directory), read_padding(self.directory)
        self.end_tokens, self.padding_token = frozenset(ends), ends[0] if padding is None else padding
        self.session = open_session(self.path, threads, graph, data or self.path.parent, mapped=mapped)
        self.provider: str = self.session.get_providers()[0]
        self._device = "cuda" if self.provider == "CUDAExecutionProvider" else "cpu"
        inputs = {value.name: value for value in self.session.get_inputs()}
        outputs = {value.name: value for value in self.session.get_outputs()}
        self._constants: Mapping[str, Any] = {}
        self._cache = cache_entries(inputs, outputs, self.path, told_sizes(self.directory))
        past = {entry.past for entry in self._cache}
        fed = {name: value for name, value in inputs.items() if name not in past}
        _require_known(fed, self.path)
        self._fed = {name: TYPES[value.type] for name, value in fed.items()}
        self._shapes = {name: value.shape for name, value in fed.items()}
        present = {entry.present for entry in self._cache}
        # What the first graph of a pair leaves, which takes no past.
        self._left = [name for name in outputs if name not in present and present_name(name) is not None]
        self._others = [name for name in outputs if name not in {*present, *self._left}]
        first = self.path if graph is not None else graphs_of(self.path)[0]
        self._prefill = None if first == self.path else Runner(first, threads=threads, mapped=mapped)
        if "logits" not in outputs:
            raise BakeoutError(f"{self.path} gives no logits.", "Export the model with its language-model head.")
        # Without position_ids a graph may count padding as positions, or take it to lie on the right; without a mask it
        # reads it.
        self.takes_padding = {"position_ids", "attention_mask"} <= self._fed.keys()
        if self._prefill is not None:
            self.takes_padding &= self._prefill.takes_padding
        width = outputs["logits"].shape[-1]
        self._vocabulary = width if isinstance(width, int) else 1 << 18
        # As the files beside the graph give them: it may hold fewer positions than its inputs take.
        config = read_json(self.directory / "config.json")
        self.limits = Limits.of_config(config, width if isinstance(width, int) else None)

    @cached_property
    def tokenizer(self) -> Tokenizer:
        """The tokenizer that lies beside the graph, with the chat template that was chosen."""
        from bakeout.models.data.tokenizers.tokenization import load_tokenizer

        tokenizer = load_tokenizer(self.directory)
        return tokenizer if self._chat_template is None else self._chat_template.applied_to(tokenizer)

    @property
    def takes_one_token(self) -> bool:
        """Whether the graph takes a text token by token alone."""
        return bool(self._shapes["input_ids"][1:] == [1])

    @property
    def has_cache(self) -> bool:
        """Whether the graph takes past keys and values; else every step computes the whole text again."""
        return bool(self._cache)

    def use_adapter(self, adapter: str | os.PathLike[str] | None) -> None:
        """Run as the policy in an ``.onnx_adapter`` from now on, or with None as the graph itself.

        Raises ``BakeoutError`` for a file that is no such adapter, or one for another graph.
        """
        self._constants = {} if adapter is None else read_adapter(Path(adapter), self.session)

    def step(self, input_ids: Integers, attention_mask: Integers, cache: Cache | None = None) -> Step:
        """Run the graph once.

        ``input_ids``: int64 [batch, new]; ``attention_mask``: int64 [batch, past + new], 0 for padding; ``cache``: of
        the step before, or None at the start of a text. Raises ``BakeoutError`` for padding that the graph cannot be
        told of, and where it fails.
        """
        if self._prefill is not None and cache is None:
            return self._begun(self._prefill.step(input_ids, attention_mask))
        if "attention_mask" not in self._fed and not attention_mask.all():
            raise BakeoutError(
                f"{self.path} takes no attention mask, and would read padding as text.",
                "Run texts of one length together, or one by one.",
            )
        # Rows that have ended run on with their batch, beyond the context too.
        positions = np.maximum(attention_mask.cumsum(axis=1) - 1, 0)[:, -input_ids.shape[1] :]
        if self.limits.context is not None:
            positions = np.minimum(positions, self.limits.context - 1)
        new, total = input_ids.shape[1], attention_mask.shape[1]
        fed = {
            "input_ids": input_ids,
            "attention_mask": attention_mask,
            "position_ids": positions,
            "token_type_ids": np.zeros_like(input_ids),
            "cache_position": np.arange(total - new, total),
            # Of all tokens.
            **dict.fromkeys(LOGITS_TO_KEEP, np.array(0)),
        }
        binding = self.session.io_binding()
        for name, dtype in self._fed.items():
            value = fed[name] if fed[name].ndim else fed[name].reshape([1] * len(self._shapes[name]))
            binding.bind_cpu_input(name, np.ascontiguousarray(value, dtype).reshape(value.shape))
        # NumPy's memory, which must outlive the run.
        cache = cache or {entry.past: self._empty(entry, len(input_ids)) for entry in self._cache}
        for entry in self._cache:
            binding.bind_ortvalue_input(entry.past, cache[entry.past])
            binding.bind_output(entry.present, self._device)
        for name, constant in self._constants.items():
            binding.bind_ortvalue_input(name, constant)
        for name in self._left:
            binding.bind_output(name, self._device)
        for name in self._others:
            binding.bind_output(name, "cpu")
        try:
            self.session.run_with_iobinding(binding)
        # With bound inputs, a node that fails raises a plain RuntimeError.
        except (*CANNOT_RUN, RuntimeError) as error:
            raise cannot_run(self.path, error) from None
        values = binding.get_outputs()
        kept = [*(entry.past for entry in self._cache), *self._left]
        others = {name: value.numpy() for name, value in zip(self._others, values[len(kept) :], strict=True)}
        left = dict(zip(kept, values, strict=False))
        logits = others.pop("logits").astype(np.float32, copy=False)
        if logits.ndim != 3 or len(logits) != len(input_ids):
            raise BakeoutError(
                f"{self.path} gives logits of shape {[*logits.shape]} for a batch of {len(input_ids)}.",
                "Copy or export the model again.",
            )
        return Step(logits, left, others)

    def _begun(self, read: Step) -> Step:
        """The first step of a text, which the first graph of a pair has ``read``, with the second's cache."""
        left = {present_name(name): value for name, value in read.cache.items()}
        if missing := [entry.past for entry in self._cache if past_name(entry.past) not in left]:
            raise BakeoutError(
                f"{self.path} goes on from {missing[0]}, which the graph beside it does not leave.",
                "Export both again.",
            )
        return replace(read, cache={entry.past: left[past_name(entry.past)] for entry in self._cache})

    def generate(
        self,
        prompts: Sequence[Sequence[int]],
        max_new_tokens: int,
        *,
        sampling: Sampling | None = None,
        stop: Callable[[Sequence[int]], bool] | None = None,
        batch_size: int = 32,
        piece: int | None = None,
    ) -> list[list[int]]:
        """The answer to each prompt, greedy or by ``sampling``: token ids, with the end-of-text token.

        Prompts of similar lengths share a batch, padded on the left. An answer ends with any of ``end_tokens``, at the
        model's context (which is logged), and where ``stop`` is true of the tokens generated for it so far. ``piece``:
        feed prompts in runs of this many tokens, each with the cache of those before it; then only prompts of one
        length share a batch, so that no run is padding alone. Raises ``BakeoutError`` for a ``piece`` where the graph
        has no cache, and for a prompt that the model cannot read.
        """
        if piece is not None and not self.has_cache:
            raise BakeoutError(f"{self.path} has no cache, so prompts cannot be fed in pieces.", "Feed them whole.")
        answers: list[list[int]] = [[] for _ in prompts]
        stopped = None if stop is None else (lambda row: stop(answers[row]))
        for row, token, _ in self._tokens(prompts, max_new_tokens, sampling, batch_size, stopped, piece):
            answers[row].append(token)
        return answers

    def each_answer(
        self,
        prompts: Sequence[Sequence[int]],
        max_new_tokens: int,
        *,
        sampling: Sampling | None = None,
        batch_size: int = 32,
        only: Collection[int] | None = None,
        read_once: bool = False,
    ) -> Iterator[tuple[int, list[int]]]:
        """The answers of ``generate``, each as soon as it has ended, as (the prompt's index, its tokens).

        ``only``: the indices of the prompts to answer; no answer depends on which these are.
        ``read_once``: equal prompts of a batch are read once, on the processor; not for graphs that draw themselves.
        """
        answers: dict[int, list[int]] = {}
        for row, token, _ in self._tokens(
            prompts, max_new_tokens, sampling, batch_size, only=only, read_once=read_once
        ):
            answers.setdefault(row, []).append(token)
            if token in self.end_tokens or len(answers[row]) == max_new_tokens:
                yield row, answers.pop(row)
        # Those that the model's context cut off.
        yield from answers.items()

    def answer(self, prompt: str, max_new_tokens: int = 256, *, sampling: Sampling | None = None) -> str:
        """The answer to one prompt, asked through the tokenizer's chat template where it has one; greedily by default.

        Raises ``BakeoutError`` where nothing is left of the prompt, or the template refuses it.
        """
        from bakeout.export.running.chat import Chat

        return "".join(Chat(self, max_new_tokens, sampling, single_turn=True).answer(prompt)).strip()

    def generate_with_logits(
        self, prompts: Sequence[Sequence[int]], max_new_tokens: int, *, batch_size: int = 32
    ) -> list[tuple[list[int], Logits]]:
        """Greedy text of each prompt, and the logits behind each of its tokens: float32 [tokens, vocabulary]."""
        answers: list[list[int]] = [[] for _ in prompts]
        seen: list[list[Logits]] = [[] for _ in prompts]
        for row, token, logits in self._tokens(prompts, max_new_tokens, None, batch_size):
            answers[row].append(token)
            # Of its own: it is a row of what the graph gave of the whole batch, which would stay.
            seen[row].append(logits.copy())
        return [(tokens, np.stack(values)) for tokens, values in zip(answers, seen, strict=True)]

    def logits(self, prompts: Sequence[Sequence[int]], *, batch_size: int = 32) -> list[Logits]:
        """The logits at every token of each prompt: float32 [tokens, vocabulary]."""
        by_prompt: list[Logits] = [np.empty(0, np.float32)] * len(prompts)
        for row, logits in self.each_logits(prompts, batch_size=batch_size):
            by_prompt[row] = logits
        return by_prompt

    def each_logits(self, prompts: Sequence[Sequence[int]], *, batch_size: int = 32) -> Iterator[tuple[int, Logits]]:
        """The same one by one, as (the prompt's index, its logits): no more than a batch's are in memory."""
        for rows in self._batches(prompts, batch_size, same_length=not self.takes_padding):
            ids, mask = left_padded([prompts[row] for row in rows], self.padding_token)
            logits = self.step(ids, mask).logits
            for row, values in zip(rows, logits, strict=True):
                yield row, values[-len(prompts[row]) :]

    def stream(self, prompt: Sequence[int], max_new_tokens: int, *, sampling: Sampling | None = None) -> Iterator[int]:
        """The tokens of one answer as they are computed, without the end-of-text token."""
        for _, token, _ in self._tokens([prompt], max_new_tokens, sampling, 1):
            if token not in self.end_tokens:
                yield token

    def each_given(
        self, prompts: Sequence[Sequence[int]], answers: Sequence[Sequence[int]], *, batch_size: int = 32
    ) -> Iterator[tuple[int, int, Logits]]:
        """Answers that are given, fed token by token: (the prompt's index, the token, the logits [vocabulary] for it).

        So an answer is generated; tokens that are run together are a query to a graph that tests queries.
        """
        fed = [0] * len(prompts)
        longest = max(map(len, answers), default=0)

        def all_fed(row: int) -> bool:
            return fed[row] == len(answers[row])

        for row, token, logits in self._tokens(prompts, longest, Given(answers), batch_size, all_fed):
            fed[row] += 1
            yield row, token, logits

    def _tokens(
        self,
        prompts: Sequence[Sequence[int]],
        max_new_tokens: int,
        sampling: Sampling | Given | None,
        batch_size: int,
        stopped: Callable[[int], bool] | None = None,
        piece: int | None = None,
        only: Collection[int] | None = None,
        read_once: bool = False,
    ) -> Iterator[tuple[int, int, Logits]]:
        """Step after step, for each row that has not ended: (row, its next token, the logits float32 [vocabulary])."""
        ends = np.array(sorted(self.end_tokens))
        context, cut = self.limits.context, 0
        asked = range(len(prompts)) if only is None else frozenset(only)
        same_length = not self.takes_padding or piece is not None
        for rows in self._batches(prompts, batch_size, same_length=same_length, only=asked):
            choose: Choose = sampling.chooser(rows) if sampling else greedy
            ids, mask = left_padded([prompts[row] for row in rows], self.padding_token)
            step = (self._read_once if read_once and self._device == "cpu" else self._read)(ids, mask, piece)
            is_open = np.ones(len(rows), dtype=bool)
            is_asked = np.array([row in asked for row in rows])
            lengths = mask.sum(axis=1)
            for remaining in reversed(range(max_new_tokens)):
                logits = step.logits[:, -1]
                tokens = np.where(is_open, choose(logits), self.padding_token)
                for index in np.flatnonzero(is_open & is_asked):
                    yield rows[index], int(tokens[index]), logits[index]
                is_open &= ~np.isin(tokens, ends)
                if stopped is not None:
                    is_open[[index for index in np.flatnonzero(is_open) if stopped(rows[index])]] = False
                lengths += 1
                if remaining and context is not None:
                    cut += int((is_open & is_asked & (lengths > context)).sum())
                    is_open &= lengths <= context
                if not remaining or not (is_open & is_asked).any():
                    break
                new = tokens[:, None]
                ids = new if self.has_cache else np.concatenate([ids, new], axis=1)
                mask = np.concatenate([mask, np.ones_like(new)], axis=1)
                step = self.step(ids, mask, step.cache)
        if cut:
            _logger.warning("The model's context of %d tokens was full before %d answers ended.", context, cut)

    def _read_once(self, ids: Integers, mask: Integers, piece: int | None) -> Step:
        """The same, of equal prompts read once."""
        both = np.concatenate([ids, mask], axis=1)
        _, first, places = np.unique(both, axis=0, return_index=True, return_inverse=True)
        return self._read(ids[first], mask[first], piece).of_rows(places.reshape(-1))

    def _read(self, ids: Integers, mask: Integers, piece: int | None) -> Step:
        """The step behind a batch of prompts, fed in one run or in pieces."""
        size = piece or ids.shape[1]
        step = self.step(ids[:, :size], mask[:, :size])
        for start in range(size, ids.shape[1], size):
            step = self.step(ids[:, start : start + size], mask[:, : start + size], step.cache)
        return step

    def _batches(
        self,
        prompts: Sequence[Sequence[int]],
        batch_size: int,
        *,
        same_length: bool,
        only: Collection[int] | None = None,
    ) -> Iterator[list[int]]:
        if not all(prompts):
            raise BakeoutError("A prompt has no tokens.", "Give each prompt some text.")
        for prompt in prompts:
            self.limits.require(prompt, None, "A prompt")
        return batches(prompts, batch_size, self._vocabulary, same_length=same_length, only=only)

    def _empty(self, entry: CacheEntry, batch: int) -> onnxruntime.OrtValue:
        return onnxruntime.OrtValue.ortvalue_from_numpy(entry.empty(batch), self._device)


def _require_known(inputs: Mapping[str, Any], path: Path) -> None:
    """Raise ``BakeoutError`` unless ``inputs``, those beside the cache, are what ``Runner.step`` feeds."""
    if MERGED in inputs:
        raise BakeoutError(
            f"{path} is a merged decoder (its input {MERGED} chooses between two graphs), which is not run.",
            "Use `decoder_with_past_model.onnx` or `model.onnx` of the same export.",
        )
    unknown = [name for name, value in inputs.items() if name not in _INPUTS or value.type not in TYPES]
    if unknown or "input_ids" not in inputs:
        raise BakeoutError(
            f"{path} takes {', '.join(unknown or inputs)}: not what a decoder of text takes.",
            "Export a text decoder with optimum, for the task text-generation-with-past.",
        )
