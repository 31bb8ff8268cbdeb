"""Run a decoder graph with onnxruntime-genai: its decode loop and its caches, as where the artifact is served."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Collection, Container, Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from bakeout.export.artifacts.model_source import find_graph
from bakeout.export.artifacts.onnx_layout import graphs_of, home_of
from bakeout.export.running.batching import batches
from bakeout.export.running.genai_config import GENAI_CONFIG, genai_config
from bakeout.export.running.runner import Runner
from bakeout.export.running.sampling import Sampling
from bakeout.graph_passes.graph.graph_file import load_graph
from bakeout.models.checkpoint.end_of_text import read_end_of_text
from bakeout.models.data.limits import Limits
from bakeout.models.data.padding import right_padded
from bakeout.models.errors import BakeoutError
from bakeout.models.extras import is_installed, missing_extra
from bakeout.models.files.json_object import read_json
from bakeout.models.files.writing import scratch_directory

if TYPE_CHECKING:
    from bakeout.models.data.tokenizers.chat_options import ChatTemplateOptions
    from bakeout.models.data.tokenizers.tokenization import Tokenizer

_logger = logging.getLogger(__name__)
_PACKAGE = "onnxruntime_genai"
# The most probable token each time, whatever the model's own configuration asks for.
_GREEDY: Mapping[str, Any] = {
    "do_sample": False,
    "num_beams": 1,
    "min_length": 0,
    "no_repeat_ngram_size": 0,
    "repetition_penalty": 1.0,
}


class GenaiRunner:
    """An ONNX decoder in onnxruntime-genai: a directory or graph with ``genai_config.json``, or one that can have it.

    Where there is none, it runs by the one that ``bake`` would write from ``config.json``. Only answers are generated:
    genai shows no logits of a text that it is given. Its own configuration names the execution provider, and whether
    past and present share their memory; what it says of how tokens are chosen has no effect.

    Raises ``BakeoutError`` where genai is not installed, and for a directory that it cannot run.
    """

    def __init__(self, path: str | os.PathLike[str], *, chat_template: ChatTemplateOptions | None = None) -> None:
        require_genai()
        self._chat_template = chat_template
        self.path = find_graph(Path(path))
        self.directory = home_of(self.path)
        if len(graphs_of(self.path)) > 1:
            raise BakeoutError(
                f"onnxruntime-genai runs one graph, and {self.directory} holds two that belong together.",
                "Run it with ONNX Runtime, or export it as one graph.",
            )
        self.end_tokens = frozenset(read_end_of_text(self.directory).require(self.directory))
        self._model, config = _loaded(self.path, self.directory)
        self._padding = int(config["pad_token_id"])
        self._vocabulary = int(config["vocab_size"])
        self.limits = Limits(self._vocabulary, int(config["context_length"]))

    @cached_property
    def tokenizer(self) -> Tokenizer:
        """The tokenizer that lies beside the graph, with the chat template that was chosen."""
        from bakeout.models.data.tokenizers.tokenization import load_tokenizer

        tokenizer = load_tokenizer(self.directory)
        return tokenizer if self._chat_template is None else self._chat_template.applied_to(tokenizer)

    def each_answer(
        self,
        prompts: Sequence[Sequence[int]],
        max_new_tokens: int,
        *,
        sampling: Sampling | None = None,
        batch_size: int = 32,
        only: Collection[int] | None = None,
    ) -> Iterator[tuple[int, list[int]]]:
        """The answer to each prompt as soon as it has ended, as (the prompt's index, its tokens).

        As ``Runner.each_answer``; drawn answers are generated one by one, each from a seed of its own, because genai
        draws for a batch from one stream. Raises ``BakeoutError`` for a prompt that the model cannot read.
        """
        if not all(prompts):
            raise BakeoutError("A prompt has no tokens.", "Give each prompt some text.")
        for prompt in prompts:
            self.limits.require(prompt, None, "A prompt")
            if prompt[-1] == self._padding:
                raise BakeoutError(
                    f"A prompt ends with token {self._padding}, which onnxruntime-genai takes for padding there.",
                    "End it otherwise, or run it with ONNX Runtime.",
                )
        cut = 0
        asked = range(len(prompts)) if only is None else frozenset(only)
        together = batches(
            prompts,
            1 if sampling else batch_size,
            self._vocabulary,
            # A padded batch would leave a longer prompt less room than the context does.
            longest=self._context - max_new_tokens,
            only=asked,
        )
        for rows in together:
            search = dict(_GREEDY) if sampling is None else {**_GREEDY, **_drawing(sampling, rows[0])}
            for row, tokens in self._answers(rows, asked, prompts, max_new_tokens, search):
                cut += len(tokens) < max_new_tokens and not self.end_tokens.intersection(tokens[-1:])
                yield row, tokens
        if cut:
            _logger.warning("The model's context of %s tokens was full before %d answers ended.", self._context, cut)

    @property
    def _context(self) -> int:
        assert self.limits.context is not None
        return self.limits.context

    def _answers(
        self,
        rows: Sequence[int],
        asked: Container[int],
        prompts: Sequence[Sequence[int]],
        max_new_tokens: int,
        search: Mapping[str, Any],
    ) -> Iterator[tuple[int, list[int]]]:
        """The answers of one batch to those that are asked, which genai wants padded on the right."""
        import onnxruntime_genai as genai

        ids, _ = right_padded([prompts[row] for row in rows], self._padding)
        answers: dict[int, list[int]] = {row: [] for row in rows if row in asked}
        longest = min(ids.shape[1] + max_new_tokens, self._context)
        try:
            parameters = genai.GeneratorParams(self._model)
            parameters.set_search_options(batch_size=len(rows), max_length=longest, **search)
            generator = genai.Generator(self._model, parameters)
            if longest > ids.shape[1]:
                generator.append_tokens(ids.astype(np.int32))
            for _ in range(longest - ids.shape[1]):
                generator.generate_next_token()
                for row, token in zip(rows, generator.get_next_tokens().tolist(), strict=True):
                    if row in answers:
                        answers[row].append(token)
                        if token in self.end_tokens:
                            yield row, answers.pop(row)
                if not answers:
                    break
        except RuntimeError as error:
            raise _cannot_run(self.path, error) from None
        yield from answers.items()


# What generates answers; only the first shows logits too.
AnyRunner = Runner | GenaiRunner


def showing_logits(runner: AnyRunner, reader: str) -> Runner:
    """``runner``, for ``reader``, which reads logits. Raises ``BakeoutError`` where it shows none."""
    if isinstance(runner, GenaiRunner):
        raise no_logits(reader)
    return runner


def no_logits(reader: str) -> BakeoutError:
    """What is raised where genai is to show what it gives a text; ``reader``: what would read it."""
    return BakeoutError(
        f"onnxruntime-genai shows no logits of a text that it is given, and {reader} reads them.",
        "Measure that without `runtime: genai` (`--runtime genai`).",
    )


def require_genai() -> None:
    """Raise ``BakeoutError`` where onnxruntime-genai is not installed."""
    if not is_installed(_PACKAGE):
        missing = missing_extra(ModuleNotFoundError(name=_PACKAGE), "Running with onnxruntime-genai")
        assert missing is not None
        raise missing


def _loaded(graph: Path, directory: Path) -> tuple[Any, Mapping[str, Any]]:
    """The graph in genai, and the section ``model`` of the configuration that it runs by."""
    import onnxruntime_genai as genai

    own = directory / GENAI_CONFIG
    with scratch_directory() as scratch:
        home = directory if own.is_file() else scratch
        place = (Path(os.path.relpath(graph.parent.resolve(), home.resolve())) / graph.name).as_posix()
        if own.is_file():
            content = read_json(own)
        elif (directory / "config.json").is_file():
            content = genai_config(directory, load_graph(graph), place)
            (scratch / GENAI_CONFIG).write_text(json.dumps(content), encoding="utf-8")
        else:
            raise BakeoutError(
                f"{directory} has neither {GENAI_CONFIG} nor config.json, so onnxruntime-genai cannot run it.",
                "Put one of them there, or run it with ONNX Runtime.",
            )
        try:
            model = content["model"]
            for name in ("pad_token_id", "vocab_size", "context_length"):
                int(model[name])
            config = genai.Config(str(home))
            config.overlay(json.dumps({"model": {"decoder": {"filename": place}}}))
            return genai.Model(config), model
        except (KeyError, TypeError, ValueError):
            raise BakeoutError(
                f"{own} gives no token that pads, no size of the vocabulary or no length of the context.",
                "Remove it, or copy it again.",
            ) from None
        except RuntimeError as error:
            raise _cannot_run(graph, error) from None


def _drawing(sampling: Sampling, row: int) -> Mapping[str, Any]:
    """How genai draws the answer to one prompt: from the most probable tokens that reach ``top_p`` together."""
    seed = int(np.random.SeedSequence((sampling.seed, row)).generate_state(1)[0] >> 1)
    return {
        "do_sample": True,
        "temperature": sampling.temperature,
        "top_p": sampling.top_p,
        "top_k": 0,
        "random_seed": seed,
    }


def _cannot_run(path: Path, error: Exception) -> BakeoutError:
    reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
    return BakeoutError(f"onnxruntime-genai cannot run {path} ({reason}).", "Run it with ONNX Runtime.")
