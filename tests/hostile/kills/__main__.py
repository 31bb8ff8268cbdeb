"""``python -m tests.hostile.kills --kills 100 --seed 1`` prints findings, and exits with 1 where there are any."""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from collections import Counter
from pathlib import Path

# Before torch is imported: what its threads hold is held for ever in a fork.
os.environ.update(OMP_NUM_THREADS="1", TOKENIZERS_PARALLELISM="false", HF_HUB_OFFLINE="1")

from tests.hostile.kills.kills import Bench, kills


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.hostile.kills")
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--command", action="append", help="these alone, as they are named in inputs.py")
    options = parser.parse_args()
    counts: Counter[str] = Counter()
    findings = 0
    with tempfile.TemporaryDirectory(prefix="bakeout-kills-") as directory:
        bench = Bench(Path(directory), options.command)
        for killed in kills(bench, options.kills, options.seed):
            counts[f"{killed.name}: {killed.end}"] += 1
            findings += len(killed.findings)
            for finding in killed.findings:
                print(f"{killed.name}, {killed.moment}: {finding}", flush=True)
    for name, count in sorted(counts.items()):
        print(f"{name}: {count}")
    print(f"{options.kills} kills, seed {options.seed}: {findings} findings")
    sys.exit(1 if findings else 0)


main()
