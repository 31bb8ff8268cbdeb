"""``python -m tests.hostile.fuzz --inputs 20000 --seed 1`` prints findings, and exits with 1 where there are any."""

from __future__ import annotations

import argparse
import os
import shutil
import sys
import time
from collections import Counter

# Before anything reads them.
os.environ.update(OMP_NUM_THREADS="1", TOKENIZERS_PARALLELISM="false", HF_HUB_OFFLINE="1")

from tests.hostile.fuzz.bench import root
from tests.hostile.fuzz.cases import TARGETS, Case, cases, run, seconds, warm_up
from tests.hostile.fuzz.commands import COMMANDS
from tests.hostile.fuzz.workers import Outcome, run_cases


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.hostile.fuzz")
    parser.add_argument("--inputs", type=int, default=20_000, help="all together")
    parser.add_argument("--commands", type=int, default=300, help="of them, as whole commands")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--workers", type=int, default=min(4, os.cpu_count() or 1))
    parser.add_argument("--target", choices=TARGETS, help="this one alone")
    parser.add_argument("--case", type=int, help="one case's seed, of --target")
    parser.add_argument("--counts", action="store_true", help="say how many inputs each target had")
    options = parser.parse_args()
    if options.case is not None and not options.target:
        parser.error("--case needs its --target")
    try:
        if options.case is not None:
            print(*run((options.target, options.case)), sep="\n")
            return
        chosen = cases(options.inputs - options.commands, options.commands, options.seed)
        if options.target:
            chosen = [(options.target, number) for _, number in chosen]
        sys.exit(1 if _try(chosen, options) else 0)
    finally:
        os.chdir("/")
        shutil.rmtree(root(), ignore_errors=True)


def _try(chosen: list[Case], options: argparse.Namespace) -> int:
    """Run the cases, and print what was found; how many kinds of findings that are."""
    begun = time.monotonic()
    warm_up()
    # Commands show that they work before anything is mutated for them.
    show = options.commands >= len(COMMANDS) and not options.target
    good: list[Case] = [(name, None) for name in COMMANDS] if show else []
    counts: Counter[str] = Counter()
    of_targets: Counter[str] = Counter()
    findings: dict[str, list[Outcome]] = {}
    for outcome in run_cases(run, [*good, *chosen], options.workers, seconds, root()):
        name, seed = outcome.case
        if seed is not None:
            counts[outcome.kind] += 1
            of_targets[name] += 1
            if counts.total() % 500 == 0:
                print(f"{counts.total()} of {len(chosen)}: {len(findings)} findings", file=sys.stderr, flush=True)
        if outcome.is_finding or (seed is None and outcome.detail != "ok"):
            kind = f"{name}: {outcome.kind}, {_where(outcome)}"
            if kind not in findings:
                print(f"{kind} (--case {seed})", file=sys.stderr, flush=True)
            findings.setdefault(kind, []).append(outcome)
    for name, outcomes in sorted(findings.items(), key=lambda item: -len(item[1])):
        print(f"{len(outcomes)} x {name} (--case {outcomes[0].case[1]})")
    if options.counts:
        print(*(f"{count:>6}  {name}" for name, count in sorted(of_targets.items())), sep="\n")
    took = time.monotonic() - begun
    commands = sum(of_targets[name] for name in COMMANDS)
    print(
        f"{counts.total()} inputs, {commands} of them as whole commands, seed {options.seed}, {took:.0f} s: "
        f"{dict(sorted(counts.items()))}"
    )
    return len(findings)


def _where(outcome: Outcome) -> str:
    """The last line of ours in a traceback, and the error."""
    rows = outcome.detail.strip().splitlines()
    ours = [row.strip() for row in rows if "/bakeout/" in row]
    return f"{ours[-1] if ours else ''} {rows[-1] if rows else ''}"[:400]


main()
