"""The rounds of Reveal-and-Release (arXiv 2509.14624): what each reveals, trains and measures."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Literal

from transformers import PreTrainedModel

from bakeout.models.data.rows import Record, read_records
from bakeout.models.data.tokenizers.tokenization import Tokenizer
from bakeout.models.errors import BakeoutError
from bakeout.models.methods.lora_modules import Module, summed
from bakeout.models.methods.reveal_and_release import METHOD
from bakeout.models.methods.reveal_and_release.neural_ucb import NeuralUCB
from bakeout.models.methods.reveal_and_release.options import RevealAndReleaseOptions
from bakeout.models.methods.reveal_and_release.release import Text, overlap, reproduced, train_module
from bakeout.models.methods.reveal_and_release.reveal import audit_lines, reveal_forget_data
from bakeout.models.methods.reveal_and_release.round_files import Round, RoundFiles
from bakeout.models.methods.reveal_and_release.scorers import Scorer, matching, novelty
from bakeout.models.network.generation import continue_prompts, named_ends
from bakeout.models.plan import LowRankUpdate
from bakeout.models.progress import Track
from bakeout.models.reference.weight_edits import edited_weights

# One of this many revealed questions and retain prompts is not trained on: it measures a round.
_CHECKED = 4
# At most this many retain prompts of each name measure a round.
_RETAIN_CHECKS = 100


class Rounds:
    """What the rounds of one fit share. Between rounds the model has the weights W_0."""

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: Tokenizer,
        retain: Mapping[str, Sequence[Record]],
        options: RevealAndReleaseOptions,
        files: RoundFiles,
        track: Track,
    ) -> None:
        self._model = model
        self._tokenizer = tokenizer
        self._candidates = options.instructions
        self._retain = retain
        self._patterns = options.patterns
        self._reveal, self._release = options.reveal, options.release
        self._files = files
        self._seed = options.seed
        self._with_experts = options.experts
        self._track = track
        self._ends = named_ends(model, tokenizer).tokens
        trained = [record for records in retain.values() for record in records if not _is_checked(record)]
        self._retain_texts = self._texts([record for record in trained if record.response_ids])
        if not self._retain_texts:
            raise BakeoutError(
                "Reveal-and-Release: the retain data has no answers to train on.", "Give rows with a response."
            )
        self._retain_checks = {name: self._own_answers(name, records) for name, records in retain.items()}

    def parts(self, done: Sequence[Round]) -> list[tuple[float, Module]]:
        """The modules of finished rounds, each with the share that is added."""
        steps = -self._release.forget_step, self._release.retain_step
        return [part for round_ in done for part in zip(steps, (round_.forget, round_.retain), strict=True)]

    def round(self, done: Sequence[Round], bandit: NeuralUCB) -> Round:
        """The round after those that are done."""
        number = len(done) + 1
        parts = self.parts(done)
        pulls = len(bandit.arms)
        self._reveal_round(number, parts, bandit)
        pool = [record for earlier in range(1, number + 1) for record in self._revealed(earlier)]
        texts = self._as_ended([record for record in pool if not _is_checked(record)])
        checks = self._as_ended([record for record in pool if _is_checked(record)])
        if not texts or not checks:
            raise BakeoutError(
                f"Reveal-and-Release: the model revealed {len(pool)} answers in {number} rounds of "
                f"{self._reveal.pulls} x {self._reveal.samples} samples.",
                "Give other instructions or patterns, a lower `minimum_score`, or more `pulls` and `samples`.",
            )
        forget, forget_loss = self._train("forget", number, texts, parts, [round_.retain for round_ in done])
        parts.append((-self._release.forget_step, forget))
        forgotten = [*(round_.forget for round_ in done), forget]
        retain, retain_loss = self._train("retain", number, self._retain_texts, parts, forgotten)
        parts.append((self._release.retain_step, retain))
        with self._moved(parts):
            known = _share(reproduced(self._model, checks))
            kept = {name: _share(reproduced(self._model, texts)) for name, texts in self._retain_checks.items()}
        figures = {
            "round": number,
            "revealed": len(self._revealed(number)),
            "trained_on": len(texts),
            "measured_on": len(checks),
            "pulls": [
                [self._candidates[arm], reward]
                for arm, reward in zip(bandit.arms[pulls:], bandit.rewards[pulls:], strict=True)
            ],
            "forget_loss": forget_loss,
            "retain_loss": retain_loss,
            "overlap": float(overlap(retain, forgotten)),
            "known": known,
            "kept": kept,
        }
        return Round(forget, retain, bandit.state(), figures)

    def _reveal_round(self, number: int, parts: Sequence[tuple[float, Module]], bandit: NeuralUCB) -> None:
        """Let the model as moved by ``parts`` reveal, and keep what the original model answers alike."""
        earlier = [record.prompt for before in range(1, number) for record in self._revealed(before)]
        retained = [record.prompt for records in self._retain.values() for record in records]
        with self._moved(parts):
            revealed = reveal_forget_data(
                self._model,
                self._tokenizer,
                self._candidates,
                bandit,
                self._score(),
                known=[*retained, *earlier],
                options=self._reveal,
                seed=_draw(self._seed, number, "reveal"),
                track=self._track,
            )
        self._files.write_audit(number, audit_lines(revealed, self._reveal))
        agreed = reproduced(self._model, self._as_ended(self._revealed(number)))
        lines = audit_lines([entry for entry, same in zip(revealed, agreed, strict=True) if same], self._reveal)
        self._files.write_audit(number, lines)

    def _revealed(self, number: int) -> list[Record]:
        path = self._files.audit(number)
        return read_records(path, self._tokenizer) if path.stat().st_size else []

    def _score(self) -> Scorer:
        """The scorer, with the model's weights as they are now."""
        if self._patterns is not None:
            return matching(self._patterns)
        return novelty(self._model, self._tokenizer, self._retain, chat=self._reveal.chat)

    def _train(
        self,
        kind: Literal["forget", "retain"],
        number: int,
        texts: Sequence[Text],
        parts: Sequence[tuple[float, Module]],
        previous: Sequence[Module],
    ) -> tuple[Module, float]:
        with self._moved(parts):
            return train_module(
                self._model,
                texts,
                previous,
                softening=self._release.softening if kind == "forget" else 1.0,
                options=self._release,
                seed=_draw(self._seed, number, kind),
                description=f"round {number}, {kind} module",
                with_experts=self._with_experts,
                track=self._track,
            )

    def _moved(self, parts: Sequence[tuple[float, Module]]) -> AbstractContextManager[None]:
        """A context in which the model has W_0 plus the parts."""
        edits = [LowRankUpdate(METHOD.name, summed(self._model, parts)[0])] if parts else []
        return edited_weights(self._model, edits)

    def _texts(self, records: Sequence[Record]) -> list[Text]:
        """The answers that the model is trained on, and held against."""
        return [Text(record.prompt_ids, record.ended_ids(self._ends)) for record in records]

    def _as_ended(self, records: Sequence[Record]) -> list[Text]:
        """``_texts`` of revealed rows, each with the end that W_0 says, where it gives the row's answer."""
        texts = self._texts(records)
        for end in self._ends if len(self._ends) > 1 else ():
            same = reproduced(self._model, texts)
            texts = [
                text if is_same else Text(text.prompt_ids, [*text.answer_ids[:-1], end])
                for text, is_same in zip(texts, same, strict=True)
            ]
        return texts

    def _own_answers(self, name: str, records: Sequence[Record]) -> list[Text]:
        """W_0's answers to the retain prompts that are not trained on, if it is confident of them."""
        prompts = [record.prompt_ids for record in records if record.prompt_ids and _is_checked(record)]
        if not prompts:
            raise BakeoutError(
                f"Reveal-and-Release: the retain data {name} has too few prompts to measure with.", "Give more rows."
            )
        answers = continue_prompts(
            self._model,
            prompts[:_RETAIN_CHECKS],
            end=frozenset(self._ends),
            max_new_tokens=self._reveal.answer_tokens,
            description=f"answering {name}",
            track=self._track,
        )
        sure = [
            Text(prompt, answer.ids)
            for prompt, answer in zip(prompts, answers, strict=False)
            if answer.confidence >= self._reveal.minimum_confidence
        ]
        if not sure:
            raise BakeoutError(
                f"Reveal-and-Release: the model is not confident of any answer to the retain data {name}.",
                "Lower `minimum_confidence`, or give prompts that it can answer.",
            )
        return sure


def _is_checked(record: Record) -> bool:
    """Decided by the prompt itself, so that it is the same in every round."""
    return hashlib.sha256(record.prompt.encode()).digest()[0] % _CHECKED == 0


def _draw(seed: int, number: int, what: str) -> int:
    """A seed of its own for every round and purpose."""
    return int.from_bytes(hashlib.sha256(f"{seed}/{number}/{what}".encode()).digest()[:4], "big")


def _share(flags: Sequence[bool]) -> float:
    return sum(flags) / len(flags)
