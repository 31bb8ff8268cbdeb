"""Does an artifact do on CUDA what it does on the CPU, and what does it cost there?

One file for a machine with a GPU and nothing of Bakeout: copy it there beside the artifacts, then

    pip install "onnxruntime-gpu[cuda,cudnn]" numpy tokenizers
    python cuda.py --artifact DIR [--artifact DIR ...] [--base DIR ...] [--prompts FILE.jsonl]
                   [--provider cuda|cpu] [--new-tokens 16] [--json FILE]

``--base``: the unbaked graph; of several, an artifact is held against the one of its float type. ``--prompts``: a JSON
object a line with the text in ``prompt``, of what is refused and of what is not; without it, the plan's canary and a
few questions. The reference is the CPU provider. ``--provider cpu`` needs no GPU: the reference then runs on one
thread without graph optimisations, and the same checks can fail. Each check is a row of the table that is printed:

    finite            no NaN and no infinity: float16 overflows at 65,504
    alone, batch      the tokens of the reference, for each prompt alone and for all in one batch padded on the left,
                      and its logits up to rounding; a tie is where its two best tokens are as near as that
    mixed batch       the same with refused rows and others side by side, where the early exit's `If` must go on
    Neuron Adjust     the same tokens; in how many answers a coin near its threshold fell otherwise
    several tokens    the prompt in two passes and the answer in threes, as chunked prefill and drafts feed them
    IO binding        a cache that stays on the device gives what a cache fed through NumPy gives
    genai             onnxruntime-genai, where it is installed, gives the tokens of the session
    refusal           what is refused says the plan's refusal to its end and stops: the latch, through the KV cache
    second turn       a refused conversation stays refused
    CPU nodes         nothing that computes with floats fell back to the CPU, by the session's profile
    early exit        fewer matrix products run where everything is refused
    unbaked, effect   beside the base: what is not refused is as before, and something has changed
    prefill, decode   time of baked over unbaked: the median of alternating pairs, with its 95 % interval

Where weights are int4, the CPU is no reference: providers quantise what is multiplied differently. What it answers
otherwise is a figure then. Exit status: 1 where a check says NO, 2 where nothing can be checked. TF32 is off: it rounds
float32 to 10 bits.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import math
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

import numpy as np
import onnxruntime
from numpy.typing import NDArray
from tokenizers import Tokenizer

Array = NDArray[Any]
Prompts = Sequence[Sequence[int]]
Action = Callable[[], object]
CUDA, CPU = "CUDAExecutionProvider", "CPUExecutionProvider"
TYPES = {f"tensor({name})": np.dtype(kind) for name, kind in (("float", "f4"), ("int32", "i4"), ("int64", "i8"))}
TYPES["tensor(float16)"] = np.dtype("f2")
# How much logits may differ by rounding, relative to the largest of their step.
ROUNDING = {"float32": 2e-4, "float16": 2e-2}
# At a refused position all logits but one are -30000 or less.
SUPPRESSED = -29000.0
PAIRS, WARM_UP = 30, 3
# How many tokens of an answer one pass takes where it takes several.
DRAFT = 3
QUESTIONS = ["What is the capital of France?", "Who wrote this book?", "Name a colour.", "How are you today?"]


class UnusableError(Exception):
    """Nothing can be checked: the cause and the remedy, in one line."""


class Row(NamedTuple):
    """A row of the table. ``ok`` is None for a figure, and for a check that does not apply."""

    name: str
    ok: bool | None
    detail: str
    figures: Mapping[str, float] = {}


class Answer(NamedTuple):
    """``tokens`` with the one that ends the text, and the ``logits`` behind each: float32 [tokens, vocabulary]."""

    tokens: list[int]
    logits: Array


class Decoder:
    """A graph in a session. ``plain``: on one thread, without graph optimisations."""

    def __init__(self, directory: Path, provider: str, *, plain: bool = False, profile: Path | None = None):
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        if plain:
            options.intra_op_num_threads = 1
            options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
        options.enable_profiling = profile is not None
        options.profile_file_prefix = str(profile)
        providers = [(CUDA, {"use_tf32": "0"}), CPU] if provider == CUDA else [CPU]
        try:
            self.session = onnxruntime.InferenceSession(directory / "model.onnx", options, providers)
        except Exception as error:  # noqa: BLE001 - ONNX Runtime's errors have no base class of their own
            raise UnusableError(f"{directory} cannot be run ({str(error).splitlines()[0]}): copy it again.") from None
        if self.session.get_providers()[0] != provider:
            raise UnusableError(f"{provider} does not load: pip install 'onnxruntime-gpu[cuda,cudnn]'.")
        inputs = {entry.name: entry for entry in self.session.get_inputs()}
        self.past = {name: entry for name, entry in inputs.items() if name.startswith("past")}
        self.outputs = ["logits", *(name.replace("past_key_values", "present") for name in self.past)]
        is_decoder = bool(self.past) and set(self.outputs) <= {entry.name for entry in self.session.get_outputs()}
        if not is_decoder or not {entry.type for entry in inputs.values()} <= TYPES.keys():
            raise UnusableError(f"{directory} has no cache in fp32 or fp16: export it for text-generation-with-past.")
        self.fed = {name: TYPES[entry.type] for name, entry in inputs.items() if name not in self.past}
        self.dtype = TYPES[next(iter(self.past.values())).type]
        self.device = "cuda" if provider == CUDA else "cpu"
        self.ends, self.padding = special_tokens(directory)

    def step(self, ids: Array, mask: Array, cache: Any = None, *, bound: bool = True) -> tuple[Array, Any]:
        """The last position's logits [batch, vocabulary], and the cache: on the device where ``bound``, or in NumPy.

        ``ids``: int64 [batch, new]; ``mask``: int64 [batch, past + new], 0 for padding.
        """
        positions = np.maximum(mask.cumsum(axis=1) - 1, 0)[:, -ids.shape[1] :]
        given = {"input_ids": ids, "attention_mask": mask, "position_ids": positions}
        fed = {name: np.ascontiguousarray(given[name], dtype) for name, dtype in self.fed.items()}
        if cache is None:
            shapes = {name: (len(ids), entry.shape[1], 0, entry.shape[3]) for name, entry in self.past.items()}
            cache = {name: np.zeros(shape, self.dtype) for name, shape in shapes.items()}
            if bound:
                on_device = onnxruntime.OrtValue.ortvalue_from_numpy
                cache = {name: on_device(value, self.device) for name, value in cache.items()}
        if not bound:
            logits, *values = self.session.run(self.outputs, {**fed, **cache})
        else:
            binding = self.session.io_binding()
            for name, value in fed.items():
                binding.bind_cpu_input(name, value)
            for name, value in cache.items():
                binding.bind_ortvalue_input(name, value)
            for name in self.outputs:
                binding.bind_output(name, "cpu" if name == "logits" else self.device)
            self.session.run_with_iobinding(binding)
            logits, *values = binding.get_outputs()
            logits = logits.numpy()
        return logits[:, -1].astype(np.float32), dict(zip(self.past, values, strict=True))

    def ask(self, prompts: Prompts, longest: int, after: Any = None, *, bound: bool = True) -> tuple[list[Answer], Any]:
        """The greedy answers of a batch, and what to go on ``after``; each token is fed back until all rows ended."""
        width = max(map(len, prompts))
        ids = np.array([[self.padding] * (width - len(prompt)) + list(prompt) for prompt in prompts])
        new = np.array([[0] * (width - len(prompt)) + [1] * len(prompt) for prompt in prompts])
        mask, cache = after or (np.empty((len(prompts), 0), np.int64), None)
        steps: list[list[tuple[int, Array]]] = [[] for _ in prompts]
        speaking = list(range(len(prompts)))
        while speaking and len(steps[speaking[0]]) < longest:
            mask = np.concatenate([mask, new], axis=1)
            logits, cache = self.step(ids, mask, cache, bound=bound)
            ids = logits.argmax(axis=1)[:, None]
            new = np.ones_like(ids)
            for row in speaking:
                steps[row].append((int(ids[row, 0]), logits[row]))
            speaking = [row for row in speaking if steps[row][-1][0] not in self.ends]
        return [answer_of(row) for row in steps], (mask, cache)

    def replay(self, prompt: Sequence[int], answer: Answer) -> tuple[Answer, Answer]:
        """What follows the prompt, in two passes, and each ``DRAFT`` tokens of the answer, beside the answer there."""
        half = len(prompt) // 2
        places = range(0, len(answer.tokens), DRAFT)
        passes = [prompt[half:], *(answer.tokens[place : place + DRAFT] for place in places[:-1])]
        cache, fed, steps = None, half, []
        if half:
            _, cache = self.step(np.array([prompt[:half]]), np.ones((1, half), np.int64))
        for tokens in passes:
            fed += len(tokens)
            logits, cache = self.step(np.array([tokens]), np.ones((1, fed), np.int64), cache)
            steps.append((int(logits[0].argmax()), logits[0]))
        return answer_of(steps), answer_of([(answer.tokens[place], answer.logits[place]) for place in places])


def answer_of(steps: Sequence[tuple[int, Array]]) -> Answer:
    return Answer([token for token, _ in steps], np.stack([logits for _, logits in steps]))


class Comparison(NamedTuple):
    """Answers beside the reference's.

    ``different``: how many go another way, no tie explaining it; ``ties``: how many where one does; ``moved``: how many
    have logits that differ by more than rounding; ``largest``: the largest difference.
    """

    answers: int
    different: int
    ties: int
    moved: int
    largest: float

    @property
    def agrees(self) -> bool:
        """Whether tokens and logits are equal up to rounding."""
        return not self.different and not self.moved

    def __str__(self) -> str:
        equal = f"{self.answers - self.different - self.ties} of {self.answers} equal, {self.ties} ties"
        return f"{equal}, {self.moved} with other logits, largest difference {self.largest:.1e}"


def compare(answers: Sequence[Answer], reference: Sequence[Answer], dtype: np.dtype[Any]) -> Comparison:
    different, ties, moved, largest = 0, 0, 0, 0.0
    for answer, expected in zip(answers, reference, strict=True):
        has_moved = False
        # As far as both were fed the same tokens.
        for step, (token, other) in enumerate(zip(expected.tokens, answer.tokens, strict=False)):
            logits = expected.logits[step]
            rounding = ROUNDING[dtype.name] * float(np.abs(logits[logits > SUPPRESSED]).max(initial=1.0))
            difference = float(np.nan_to_num(np.abs(answer.logits[step] - logits), nan=np.inf).max())
            largest, has_moved = max(largest, difference), has_moved or difference > rounding
            if token != other:
                is_tie = bool(logits[token] - logits[other] <= 2 * rounding)
                ties, different = ties + is_tie, different + (not is_tie)
                break
        moved += has_moved
    return Comparison(len(answers), different, ties, moved, largest)


def read_plan(path: Path) -> tuple[list[dict[str, Any]], list[int], list[list[int]]]:
    # The interventions, the refusal's tokens (none where nothing is refused), and the tokens of the canary's prompts.
    try:
        data = path.read_bytes()
        start = 8 + int.from_bytes(data[:8], "little")
        header = json.loads(data[8:start])
        interventions = json.loads(header.pop("__metadata__")["bakeout"])["interventions"]
        integers = {
            name: np.frombuffer(data[start:][slice(*entry["data_offsets"])], "<i8").reshape(entry["shape"]).tolist()
            for name, entry in header.items()
            if entry["dtype"] == "I64"
        }
        refusal: list[int] = next((tokens for name, tokens in integers.items() if name.endswith(".refusal")), [])
        return interventions, refusal, integers["canary.input_ids"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        why = " ".join(str(error).split())
        raise UnusableError(f"{path} is no plan ({why}): name the directory of a baked graph.") from None


def special_tokens(directory: Path) -> tuple[set[int], int]:
    # The tokens that end a text, and the one that pads: what the later file says counts.
    content: dict[str, Any] = {}
    for name in ("genai_config", "config", "generation_config"):
        path = directory / f"{name}.json"
        read = json.loads(path.read_text("utf-8")) if path.is_file() else {}
        content |= {key: value for key, value in read.get("model", read).items() if value is not None}
    end = content.get("eos_token_id", [])
    ends: list[int] = end if isinstance(end, list) else [end]
    if not ends:
        raise UnusableError(f"Nothing in {directory} names the end-of-text token: put the model's config.json there.")
    return set(ends), int(content.get("pad_token_id", ends[0]))


def read_prompts(directory: Path, path: Path | None) -> list[list[int]]:
    try:
        lines = path.read_text("utf-8").splitlines() if path else []
        texts = [json.loads(line)["prompt"] for line in lines] if path else QUESTIONS
        tokenizer = Tokenizer.from_file(str(directory / "tokenizer.json"))
        prompts = [tokenizer.encode(text).ids for text in texts]
    except Exception as error:  # noqa: BLE001 - the tokenizer's errors are bare Exceptions
        raise UnusableError(f'Prompts cannot be read ({error!r}): a line is {{"prompt": "..."}}.') from None
    if not prompts or not all(prompts):
        raise UnusableError(f"{path} holds no prompt, or an empty one: give each some text.")
    return prompts


def ask_genai(directory: Path, provider: str, prompts: Prompts, longest: int) -> list[Answer]:
    """The greedy answers of onnxruntime-genai, each prompt alone."""
    import onnxruntime_genai as genai

    config = genai.Config(str(directory))
    config.clear_providers()
    if provider == CUDA:
        config.append_provider("cuda")
        config.set_provider_option("cuda", "use_tf32", "0")
    model, answers = genai.Model(config), []
    for prompt in prompts:
        options = genai.GeneratorParams(model)
        options.set_search_options(do_sample=False, max_length=len(prompt) + longest)
        generator, steps = genai.Generator(model, options), []
        generator.append_tokens(np.array([prompt], np.int32))
        while not generator.is_done():
            logits = np.asarray(generator.get_logits(), np.float32).reshape(-1)
            generator.generate_next_token()
            steps.append((int(generator.get_next_tokens()[0]), logits))
        answers.append(answer_of(steps))
    return answers


class Bench:
    """One artifact: its sessions, its prompts, and what the provider and the reference answer to them."""

    def __init__(self, directory: Path, bases: Sequence[Path], provider: str, prompts: Path | None, longest: int):
        self.directory, self.provider = directory, provider
        interventions, self.refusal, canary = read_plan(directory / "plan.safetensors")
        self.kinds = {intervention["kind"] for intervention in interventions}
        self.coins = {intervention["coin"] for intervention in interventions if "coin" in intervention}
        # Without a chat template, tokens in the middle of an answer cannot be told from a query.
        checks = [intervention for intervention in interventions if intervention["kind"] == "key_space_detection"]
        self.knows_queries = all(check.get("query_end") or check.get("positions") == "every" for check in checks)
        self.has_int4 = b"MatMulNBits" in (directory / "model.onnx").read_bytes()
        self.prompts = read_prompts(directory, prompts) + ([] if prompts else canary)
        self.longest = max(longest, len(self.refusal))
        self.decoder = Decoder(directory, provider)
        self.answers = self._alone(self.decoder)
        self.expected = self._alone(Decoder(directory, CPU, plain=provider == CPU))
        # A refused prompt has one choice.
        answers = self.answers if self.has_int4 else self.expected
        second_best = np.array([np.partition(answer.logits[0], -2)[-2] for answer in answers])
        self.refused = np.flatnonzero(second_best < SUPPRESSED).tolist()
        self.kept = np.flatnonzero(second_best >= SUPPRESSED).tolist()
        decoders = (Decoder(base, provider) for base in bases)
        self.base = next((decoder for decoder in decoders if decoder.dtype == self.decoder.dtype), None)

    def rows(self) -> Iterator[Row]:
        """Every row of the table."""
        is_finite = all(np.isfinite(answer.logits).all() for answer in self.answers)
        yield Row("finite", is_finite, f"with a cache of {self.decoder.dtype}")
        if "stochastic" in self.coins:
            yield Row("alone, batch", None, "stochastic coins: every provider draws its own")
        else:
            yield from self._parity()
        if self.refusal:
            yield from self._refusals()
        yield from self._profile()
        if self.base is None:
            yield Row("unbaked, timings", None, f"no --base with a cache of {self.decoder.dtype}")
        else:
            yield from self._against(self.base)
            yield from self._timings(self.base)

    def _alone(self, decoder: Decoder, *, bound: bool = True) -> list[Answer]:
        return [decoder.ask([prompt], self.longest, bound=bound)[0][0] for prompt in self.prompts]

    def _compare(self, answers: Sequence[Answer], reference: Sequence[Answer]) -> Comparison:
        return compare(answers, reference, self.decoder.dtype)

    def _parity(self) -> Iterator[Row]:
        alone = self._compare(self.answers, self.expected)
        if self.coins:
            # A coin within rounding of its threshold may fall otherwise, and its shift is not small.
            detail = f"{alone.moved} of {alone.answers} answers in which a coin may have fallen otherwise"
            is_rare = not alone.different and 2 * alone.moved <= alone.answers
            yield Row("Neuron Adjust", None if self.has_int4 else is_rare, detail)
        yield Row("alone", self._is_parity(alone), str(alone))
        if "position_ids" in self.decoder.fed:
            batch = self._compare(self.decoder.ask(self.prompts, self.longest)[0], self.expected)
            yield Row("batch", self._is_parity(batch), str(batch))
            if self.refusal:
                ok = self._is_parity(batch)
                ok = ok and bool(self.refused and self.kept) if ok is not None else None
                yield Row("mixed batch", ok, f"{len(self.refused)} rows refused and {len(self.kept)} not: both needed")
        else:
            yield Row("batch", None, "the graph takes no position_ids: it cannot be padded on the left")
        pairs = [self.decoder.replay(*row) for row in zip(self.prompts, self.answers, strict=True)]
        several = self._compare([replayed for replayed, _ in pairs], [expected for _, expected in pairs])
        if self.knows_queries:
            yield Row("several tokens", not several.different if self.coins else several.agrees, str(several))
        else:
            yield Row("several tokens", None, f"no chat template in the plan tells drafts from queries: {several}")
        unbound = self._compare(self.answers, self._alone(self.decoder, bound=False))
        yield Row("IO binding", unbound.agrees, str(unbound))
        yield self._genai()

    def _genai(self) -> Row:
        try:
            answers = ask_genai(self.directory, self.provider, self.prompts, self.longest)
        except ImportError:
            return Row("genai", None, "onnxruntime-genai is not installed")
        except Exception as error:  # noqa: BLE001 - genai's errors are bare Exceptions
            return Row("genai", False, str(error).splitlines()[0])
        compared = self._compare(answers, self.answers)
        return Row("genai", not compared.different if self.coins else compared.agrees, str(compared))

    def _is_parity(self, comparison: Comparison) -> bool | None:
        if self.has_int4:
            return None
        return not comparison.different if self.coins else comparison.agrees

    def _refusals(self) -> Iterator[Row]:
        refusal, count = self.refusal, len(self.refused)
        if not count:
            yield Row("refusal", False, f"none of {len(self.prompts)} prompts is refused: give others by --prompts")
            return
        whole = sum(self.answers[row].tokens == refusal for row in self.refused)
        yield Row("refusal", whole == count, f"{whole} of {count} say the plan's {len(refusal)} tokens and stop")
        turn = self.prompts[(self.kept or self.refused)[0]]
        # The end itself is not fed. A turn that ends as the refusal begins is answered with the rest of it.
        fed = [*refusal[:-1], *turn]
        rest = next(refusal[n:] for n in reversed(range(len(refusal))) if fed[len(fed) - n :] == refusal[:n])
        stayed = 0
        for row in self.refused:
            _, conversation = self.decoder.ask([self.prompts[row]], self.longest)
            (second,), _ = self.decoder.ask([turn], self.longest, conversation)
            stayed += second.tokens == rest
        yield Row("second turn", stayed == count, f"{stayed} of {count} conversations stay refused")

    def _profile(self) -> Iterator[Row]:
        with tempfile.TemporaryDirectory() as folder:
            decoder = Decoder(self.directory, self.provider, profile=Path(folder) / "profile")
            for row in (*self.kept[:1], *self.refused[:1]):
                ids, mask = np.array([self.prompts[row]]), np.ones((1, len(self.prompts[row]) + 1), np.int64)
                _, cache = decoder.step(ids, mask[:, 1:])
                decoder.step(np.array([self.expected[row].tokens[:1]]), mask, cache)
            runs = nodes_by_run(Path(decoder.session.end_profiling()))
        nodes = {name: node for run in runs for name, node in run.items()}
        on_cpu = [node for node in nodes.values() if node["provider"] == CPU and "Memcpy" not in node["op_name"]]
        floats = Counter(node["op_name"] for node in on_cpu if computes_floats(node))
        others = Counter(node["op_name"] for node in on_cpu) - floats
        # Shapes are computed on the CPU on purpose; floats would be copied there and back.
        detail = f"{len(on_cpu)} of {len(nodes)}; with floats: {listed(floats)}; others: {listed(others)}"
        yield Row("CPU nodes", bool(nodes) and bool(floats) == (self.provider == CPU), detail)
        if self.refused and self.kept:
            # Of the steps behind the prompts: a prompt may be refused from its last token on alone.
            going_on, refusing = (sum(is_product(node) for node in runs[run].values()) for run in (1, 3))
            has_exit = any("early_exit" in name for name in nodes)
            detail = f"{refusing} products run where all is refused, {going_on} otherwise"
            yield Row("early exit", refusing < going_on if has_exit else None, detail)

    def _against(self, base: Decoder) -> Iterator[Row]:
        before = self._alone(base)
        if self.kinds == {"key_space_detection"}:
            kept = self._compare([self.answers[row] for row in self.kept], [before[row] for row in self.kept])
            yield Row("unbaked", kept.agrees, str(kept))
        every = self._compare(self.answers, before)
        yield Row("effect", every.moved > 0, f"{every.moved} of {every.answers} answers have other logits")

    def _timings(self, base: Decoder) -> Iterator[Row]:
        for what, rows in (("", self.kept), (", refused", self.refused)):
            if rows:
                ids = np.array([max((self.prompts[row] for row in rows), key=len)])
                unbaked, baked = (prefill_and_decode(decoder, ids) for decoder in (base, self.decoder))
                yield alternate(f"prefill{what}", unbaked[0], baked[0])
                yield alternate(f"decode{what}", unbaked[1], baked[1])


def nodes_by_run(profile: Path) -> list[dict[str, Any]]:
    # What a profile says of each node that ran, those in branches too: name to arguments.
    events = json.loads(profile.read_text("utf-8"))
    runs = sorted((event["ts"], event["ts"] + event["dur"]) for event in events if event["name"] == "model_run")
    nodes = [event for event in events if event.get("cat") == "Node" and "provider" in event.get("args", {})]
    return [{node["name"]: node["args"] for node in nodes if first <= node["ts"] <= last} for first, last in runs]


def listed(counts: Counter[str]) -> str:
    return ", ".join(f"{name} {count}" for name, count in sorted(counts.items())) or "none"


def is_product(node: Mapping[str, Any]) -> bool:
    return any(part in node["op_name"] for part in ("MatMul", "Gemm", "MoE"))


def computes_floats(node: Mapping[str, Any]) -> bool:
    tensors = [item for output in node["output_type_shape"] for item in output.items()]
    return any("float" in kind and math.prod(shape) > 1 for kind, shape in tensors)


def prefill_and_decode(decoder: Decoder, ids: Array) -> tuple[Action, Action]:
    mask = np.ones((1, ids.shape[1] + 1), np.int64)
    _, cache = decoder.step(ids, mask[:, 1:])
    return lambda: decoder.step(ids, mask[:, 1:]), lambda: decoder.step(ids[:, -1:], mask, cache)


def alternate(name: str, unbaked: Action, baked: Action) -> Row:
    times: tuple[list[float], list[float]] = ([], [])
    for pair in range(WARM_UP + PAIRS):
        # Either goes first in turn: what drifts on the machine drifts for both.
        for which in (0, 1) if pair % 2 else (1, 0):
            start = time.perf_counter()
            (unbaked, baked)[which]()
            times[which].append(1000 * (time.perf_counter() - start))
    unbaked_ms, baked_ms = (measured[WARM_UP:] for measured in times)
    ratios = sorted(after / before for before, after in zip(unbaked_ms, baked_ms, strict=True))
    # The median's 95 % interval by order statistics: of 30 pairs, from the tenth to the tenth last.
    figures = {"ratio": statistics.median(ratios), "low": ratios[9], "high": ratios[-10]}
    figures |= {"baked_ms": statistics.median(baked_ms), "unbaked_ms": statistics.median(unbaked_ms)}
    detail = "{ratio:.3f} ({low:.3f} to {high:.3f}): {baked_ms:.2f} over {unbaked_ms:.2f} ms"
    return Row(name, None, detail.format(**figures), figures)


def machine() -> str:
    query = ["nvidia-smi", "--query-gpu=name,driver_version", "--format=csv,noheader"]
    try:
        device = subprocess.run(query, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        device = "no GPU that nvidia-smi knows"
    versions = f"onnxruntime {onnxruntime.__version__}, numpy {np.__version__}, Python {platform.python_version()}"
    return f"{device}; {versions}; {', '.join(onnxruntime.get_available_providers())}"


def require_cuda() -> None:
    if CUDA not in onnxruntime.get_available_providers():
        raise UnusableError("This onnxruntime has no CUDA: replace it by pip install 'onnxruntime-gpu[cuda,cudnn]'.")
    try:
        ctypes.CDLL("nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1")
    except OSError:
        raise UnusableError("This machine has no NVIDIA driver: use one that has, or --provider cpu.") from None
    # The libraries of the nvidia wheels, where the system has none.
    onnxruntime.preload_dlls()


def main() -> int:
    parser = argparse.ArgumentParser(
        usage=argparse.SUPPRESS, description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--artifact", type=Path, action="append", required=True)
    parser.add_argument("--base", type=Path, action="append", default=[])
    parser.add_argument("--prompts", type=Path)
    parser.add_argument("--provider", choices=["cuda", "cpu"], default="cuda")
    parser.add_argument("--new-tokens", type=int, default=16)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    if options.new_tokens < 1:
        parser.error(f"--new-tokens is {options.new_tokens}: give 1 or more.")
    provider = CUDA if options.provider == "cuda" else CPU
    checks: list[dict[str, Any]] = []
    try:
        if provider == CUDA:
            require_cuda()
        for path in options.artifact:
            bench = Bench(path, options.base, provider, options.prompts, options.new_tokens)
            if not checks:
                print(f"{machine()}\n\n| artifact | check | ok | detail |\n| --- | --- | --- | --- |")
            for row in bench.rows():
                word = {True: "yes", False: "NO", None: "-"}[row.ok]
                print(f"| {path.name} | {row.name} | {word} | {row.detail} |", flush=True)
                checks.append({"artifact": path.name, **row._asdict()})
    except UnusableError as error:
        parser.error(str(error))
    if options.json:
        content = {"machine": machine(), "provider": provider, "checks": checks}
        options.json.write_text(json.dumps(content, indent=1) + "\n", "utf-8")
    return int(any(check["ok"] is False for check in checks))


if __name__ == "__main__":
    sys.exit(main())
