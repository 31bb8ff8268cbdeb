"""``python -m tests.hostile.fuzz --inputs 20000 --seed 1`` prints findings, and exits with 1 where there are any."""

from __future__ import annotations

import argparse
import os
import shutil
import sys
import tempfile
from collections import Counter
from pathlib import Path

from tests.hostile.fuzz.targets import TARGETS, cases, run, warm_up
from tests.hostile.fuzz.workers import Outcome, run_cases


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.hostile.fuzz")
    parser.add_argument("--inputs", type=int, default=20_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--workers", type=int, default=min(4, os.cpu_count() or 1))
    parser.add_argument("--target", choices=TARGETS, help="this one alone")
    parser.add_argument("--case", type=int, help="one case's seed, of --target")
    options = parser.parse_args()
    if options.case is not None:
        print(*run((options.target, options.case)), sep="\n")
        return
    chosen = cases(options.inputs, options.seed)
    if options.target:
        chosen = [(options.target, seed) for _, seed in chosen]
    counts: Counter[str] = Counter()
    findings: dict[str, list[Outcome]] = {}
    try:
        warm_up()
        for outcome in run_cases(run, chosen, options.workers):
            counts[outcome.kind] += 1
            if outcome.is_finding:
                findings.setdefault(f"{outcome.case[0]}: {outcome.kind}, {_where(outcome)}", []).append(outcome)
    finally:
        shutil.rmtree(Path(tempfile.gettempdir()) / f"bakeout-fuzz-{os.getpid()}", ignore_errors=True)
    for name, outcomes in sorted(findings.items(), key=lambda item: -len(item[1])):
        print(f"{len(outcomes)} x {name} (--case {outcomes[0].case[1]})")
    print(f"{sum(counts.values())} inputs, seed {options.seed}: {dict(sorted(counts.items()))}")
    sys.exit(1 if findings else 0)


def _where(outcome: Outcome) -> str:
    """The last line of ours in a traceback, and the error."""
    rows = outcome.detail.strip().splitlines()
    ours = [row.strip() for row in rows if "/bakeout/" in row]
    return f"{ours[-1] if ours else ''} {rows[-1] if rows else ''}"[:400]


main()
