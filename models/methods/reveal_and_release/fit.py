"""Reveal-and-Release (arXiv 2509.14624): unlearning without forget data, in small steps, round after round."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from transformers import PreTrainedModel

from bakeout.models.data.rows import Record
from bakeout.models.data.tokenizers.chat_template import chosen_template
from bakeout.models.data.tokenizers.tokenization import Tokenizer
from bakeout.models.errors import BakeoutError
from bakeout.models.files.writing import require_own_directory
from bakeout.models.methods.fitting import Fitting
from bakeout.models.methods.lora_modules import summed
from bakeout.models.methods.reveal_and_release import METHOD
from bakeout.models.methods.reveal_and_release.neural_ucb import NeuralUCB
from bakeout.models.methods.reveal_and_release.options import RevealAndReleaseOptions
from bakeout.models.methods.reveal_and_release.reveal import instruction_bandit
from bakeout.models.methods.reveal_and_release.round_files import Round, RoundFiles, fingerprint
from bakeout.models.methods.reveal_and_release.rounds import Rounds
from bakeout.models.network.generation import named_ends
from bakeout.models.network.mixtures.routers import routers
from bakeout.models.network.probe_cache import digest_of
from bakeout.models.plan import Intervention, LowRankUpdate
from bakeout.models.plan.kinds.report import RetainReport
from bakeout.models.progress import Track, untracked

_FORGOTTEN, _UTILITY, _ROUNDS = "forgotten", "utility fell", "rounds used up"


def fit(options: RevealAndReleaseOptions, fitting: Fitting) -> LowRankUpdate:
    """Fit on the probe data to keep."""
    names = options.names(fitting.data)
    retain = {name: fitting.probe([name]) for name in names["retain"]}
    return fit_reveal_and_release(
        fitting.model, fitting.tokenizer, retain, options, earlier=fitting.earlier, track=fitting.track
    )


def fit_reveal_and_release(
    model: PreTrainedModel,
    tokenizer: Tokenizer,
    retain: Mapping[str, Sequence[Record]],
    options: RevealAndReleaseOptions,
    *,
    earlier: Sequence[Intervention] = (),
    track: Track = untracked,
) -> LowRankUpdate:
    """Let the model reveal what it knows, train a module on that, move the weights away from it, and repeat.

    The instructions ask the model for a question ("Ask me about code:"). NeuralUCB finds those that bring out what a
    scorer accepts: what the patterns describe or, without any, what is unlike the ``retain`` data. A round, W_t being
    the weights before it:

        reveal    instructions chosen; questions sampled and answered by W_t; kept where W_0 answers alike
        release   W_{t+1} = W_t - lambda_f B_f A_f + lambda_r B_r A_r

    The forget module B_f A_f is trained on all that was revealed so far, at W_t, orthogonally to the earlier retain
    modules; the retain module B_r A_r on the ``retain`` data, at W_t - lambda_f B_f A_f, where it repairs what that
    step has broken, orthogonally to all forget modules. This order is our reading; the paper's schedule is not
    published.

    A quarter of what is revealed, and of the retain prompts, is not trained on but measured: the share of the answers
    of which W_0 is confident that stay the same, token by token. The rounds end when that of the revealed is at most
    ``options.target`` (forgotten), when that of any name in ``retain`` is under ``options.utility`` (that round is
    undone), or after ``options.rounds``.

    ``options.directory`` keeps every finished round: ``round-1.jsonl`` the revealed data, for audit,
    ``round-1.safetensors`` the modules and the bandit, ``round-1.json`` the figures. A fit that was interrupted goes on
    after the last of them, and one whose ``rounds``, ``target`` or ``utility`` end it sooner takes the first of them:
    the result is that of a new directory. No other file is read or written. ``earlier`` are the interventions that
    ``model`` carries, in its weights or as hooks, which the rounds depend on. The model is given back as it was, bit
    for bit.

    Raises ``BakeoutError`` for a directory of another fit, retain data without answers, a chat without a template,
    where too little is revealed, and where the first round already costs more utility than allowed.
    """
    if not retain:
        raise BakeoutError("Reveal-and-Release: there is no data to keep.", "Name some in `retain`.")
    if options.reveal.chat and not tokenizer.chat_template:
        raise BakeoutError(
            "Reveal-and-Release: `chat` is set, and the tokenizer has no chat template.",
            "Leave out `chat`, or take the chat model's tokenizer.",
        )
    require_own_directory(options.directory)
    files = RoundFiles(options.directory)
    settings = {
        "candidates": options.instructions,
        "retain": {name: [_content(record) for record in records] for name, records in retain.items()},
        "scorer": options.patterns or "novelty",
        "reveal": options.reveal.model_dump(),
        "release": options.release.model_dump(),
        "seed": options.seed,
        "ends": named_ends(model, tokenizer).tokens,
    }
    if routers(model):
        settings["experts"] = options.experts
    if options.reveal.chat:
        settings["chat_template"] = chosen_template(tokenizer.chat_template)
    # Earlier weight edits are in the model's parameters.
    if hooked := [digest_of(intervention) for intervention in earlier if not intervention.edits_weights]:
        settings["earlier"] = hooked
    fit = Rounds(model, tokenizer, retain, options, files, track)
    files.claim(fingerprint(model, settings))
    bandit = instruction_bandit(model, tokenizer, options.instructions, options.reveal, options.seed)
    finished = files.load()
    # The first of them after which these options end a fit, or all: they may be of other `rounds`, `target`, `utility`.
    firsts = (finished[:number] for number in range(1, len(finished)))
    done = next((rounds for rounds in firsts if _verdict(rounds, options)), finished)
    if done:
        bandit.restore(done[-1].bandit)
    while (verdict := _verdict(done, options)) is None:
        done.append(fit.round(done, bandit))
        files.save(len(done), done[-1])
    kept = done[:-1] if verdict == _UTILITY else done
    if not kept:
        raise BakeoutError(
            f"Reveal-and-Release: the first round leaves {_worst(done[0]):.1%} of the retain answers as they were.",
            "Choose a smaller `forget_step`, a larger `retain_step` or a lower `utility`.",
        )
    every, residual = summed(model, fit.parts(kept))
    # An expert that no text was sent to stays as it is.
    updates = tuple(update for update in every if update.left.any() and update.right.any())
    report = {
        **{name: settings[name] for name in ("scorer", "reveal", "release", "seed")},
        "candidates": len(options.instructions),
        "target": options.target,
        "utility": options.utility,
        "stopped": verdict,
        "rounds": [dict(round_.figures) for round_ in done],
        "rounds_kept": len(kept),
        "instructions": _rewards(options.instructions, bandit),
        "ranks": sorted({update.left.shape[1] for update in updates}),
        "residual": residual,
    }
    return LowRankUpdate(METHOD.name, updates, RetainReport(details=report))


def _content(record: Record) -> dict[str, Any]:
    """A row without the place where it stands: a fit goes on in a directory that was moved."""
    return {name: value for name, value in asdict(record).items() if name != "where"}


def _verdict(done: Sequence[Round], options: RevealAndReleaseOptions) -> str | None:
    """Why the rounds end, or None where they go on."""
    if not done:
        return None
    if _worst(done[-1]) < options.utility:
        return _UTILITY
    if done[-1].figures["known"] <= options.target:
        return _FORGOTTEN
    return _ROUNDS if len(done) >= options.rounds else None


def _worst(finished: Round) -> float:
    return float(min(finished.figures["kept"].values()))


def _rewards(candidates: Sequence[str], bandit: NeuralUCB) -> dict[str, dict[str, float]]:
    """How often each instruction was chosen, and its mean reward, the best first."""
    by_instruction = {}
    for arm in sorted(set(bandit.arms)):
        rewards = [reward for chosen, reward in zip(bandit.arms, bandit.rewards, strict=True) if chosen == arm]
        by_instruction[candidates[arm]] = {"pulls": len(rewards), "reward": sum(rewards) / len(rewards)}
    return dict(sorted(by_instruction.items(), key=lambda item: -item[1]["reward"]))
