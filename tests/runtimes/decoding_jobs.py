"""Decode loops of many kinds over one shared session, and what each gives when it runs alone."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any, Literal

import numpy as np
import torch
from optimum.onnxruntime import ORTModelForCausalLM

from bakeout.export.running.runner import Runner
from bakeout.models.data.padding import left_padded

Kind = Literal["single", "padded", "batch", "chunks", "turns", "beams", "beams in a batch"]
KINDS: tuple[Kind, ...] = ("single", "padded", "batch", "chunks", "turns", "beams", "beams in a batch")
LONGEST = 16


@dataclass(frozen=True)
class Job:
    """One decode loop over ``prompts``; ``amount`` of padding columns, tokens of a chunk, or beams."""

    kind: Kind
    prompts: tuple[tuple[int, ...], ...]
    amount: int = 0


class Decoder:
    """One graph behind all loops: our runner, and optimum for beams, each with one session."""

    def __init__(self, artifact: Path) -> None:
        self.runner = Runner(artifact, threads=1)
        self.optimum = ORTModelForCausalLM.from_pretrained(artifact)

    def run(self, job: Job) -> list[list[int]]:
        """The answers: one for each prompt, or for each turn."""
        if job.kind == "turns":
            return self._converse(job.prompts)
        if job.kind in ("beams", "beams in a batch"):
            return self._beams(job.prompts, job.amount)
        chunk = job.amount if job.kind == "chunks" else None
        padding = job.amount if job.kind in ("padded", "batch") else 0
        return self._greedy(job.prompts, padding=padding, chunk=chunk)

    def run_alone(self, job: Job) -> list[list[int]]:
        """The same, each prompt in a loop of its own, without padding."""
        if job.kind in ("padded", "batch"):
            return [answer for prompt in job.prompts for answer in self._greedy([prompt])]
        if job.kind == "beams in a batch":
            return [answer for prompt in job.prompts for answer in self._beams([prompt], job.amount)]
        return self.run(job)

    def _cut(self, tokens: Sequence[int]) -> list[int]:
        ends = [index for index, token in enumerate(tokens) if token in self.runner.end_tokens]
        return [int(token) for token in tokens[: ends[0] + 1 if ends else LONGEST]]

    def _greedy(
        self, prompts: Sequence[Sequence[int]], *, padding: int = 0, chunk: int | None = None
    ) -> list[list[int]]:
        ids, mask = left_padded(prompts, self.runner.padding_token)
        ids = np.pad(ids, ((0, 0), (padding, 0)), constant_values=self.runner.padding_token)
        mask = np.pad(mask, ((0, 0), (padding, 0)))
        size, cache = chunk or ids.shape[1], None
        for start in range(0, ids.shape[1], size):
            step = self.runner.step(ids[:, start : start + size], mask[:, : start + size], cache)
            cache = step.cache
        said: list[np.ndarray] = []
        while len(said) < LONGEST:
            said.append(step.logits[:, -1].argmax(axis=-1))
            mask = np.pad(mask, ((0, 0), (0, 1)), constant_values=1)
            step = self.runner.step(said[-1][:, None], mask, step.cache)
        return [self._cut(row) for row in np.stack(said, axis=1).tolist()]

    def _converse(self, turns: Sequence[Sequence[int]]) -> list[list[int]]:
        length, cache, answers = 0, None, []
        for turn in turns:
            said: list[int] = []
            fed: Sequence[int] = turn
            while True:
                length += len(fed)
                step = self.runner.step(np.array([fed]), np.ones((1, length), np.int64), cache)
                cache = step.cache
                if len(said) == LONGEST or (said and said[-1] in self.runner.end_tokens):
                    break
                said.append(int(step.logits[0, -1].argmax()))
                fed = [said[-1]]
            answers.append(said)
        return answers

    def _beams(self, prompts: Sequence[Sequence[int]], beams: int) -> list[list[int]]:
        ids, mask = map(torch.from_numpy, left_padded(prompts, self.runner.padding_token))
        said = self.optimum.generate(
            ids, attention_mask=mask, num_beams=beams, do_sample=False, max_new_tokens=LONGEST, pad_token_id=0
        )
        return [self._cut(row) for row in said[:, ids.shape[1] :].tolist()]


def mixed_jobs(prompts: Sequence[Sequence[int]], turns: Sequence[Sequence[int]], count: int, seed: int) -> list[Job]:
    """``count`` jobs of all kinds. ``turns``: what may follow the first turn of a conversation."""
    random = Random(seed)
    jobs = []
    for number in range(count):
        kind = KINDS[number % len(KINDS)]
        rows = random.randint(2, 5) if kind in ("batch", "beams in a batch") else 1
        chosen = [tuple(random.choice(prompts)) for _ in range(rows)]
        if kind == "turns":
            chosen += [tuple(random.choice(turns)) for _ in range(random.randint(1, 3))]
        amount = random.randint(2, 4) if "beams" in kind else random.randint(1, 9)
        jobs.append(Job(kind, tuple(chosen), amount))
    random.shuffle(jobs)
    return jobs


def run_together(decoder: Decoder, jobs: Sequence[Job], threads: int) -> list[list[list[int]]]:
    """All jobs in ``threads`` threads, which begin at once and share the decoder."""
    ready = threading.Barrier(threads)
    with ThreadPoolExecutor(threads, initializer=ready.wait) as pool:
        # A pool starts a thread for each job that waits, until it has them all.
        return list(pool.map(decoder.run, jobs))


def differing(decoder: Decoder, jobs: Sequence[Job], threads: int) -> dict[Any, int]:
    """How many jobs, by kind, give anything else together than each alone."""
    together = run_together(decoder, jobs, threads)
    alone = {job: decoder.run_alone(job) for job in set(jobs)}
    return dict(Counter(job.kind for job, said in zip(jobs, together, strict=True) if said != alone[job]))
