"""What probing costs over the same forward passes without it.

python examples/benchmarks/probing.py
"""

from __future__ import annotations

import click
import torch
from comparison import compare, print_machine, print_table
from random_llama import Shape, random_llama

from bakeout.models.data.rows import Record
from bakeout.models.network.probing import probe_keys, probe_neurons


@click.command()
@click.option("--layers", default=8, show_default=True)
@click.option("--hidden", default=512, show_default=True)
@click.option("--width", default=1408, show_default=True, help="F, the width of an FFL.")
@click.option("--tokens", default=64, show_default=True, help="Tokens of a sequence, half of them the answer.")
@click.option("--batch", default=8, show_default=True, help="Sequences per batch.")
@click.option("--batches", default=2, show_default=True, help="Batches per measurement.")
@click.option("--pairs", default=50, show_default=True, help="Interleaved pairs per ratio.")
@click.option("--clock", type=click.Choice(["wall", "processor"]), default="wall", show_default=True)
def main(layers: int, hidden: int, width: int, tokens: int, batch: int, batches: int, pairs: int, clock: str) -> None:
    """Measure and print a table; every row probes all layers at once."""
    shape = Shape(layers, hidden, width, 1000, hidden // 64, hidden // 64, 64, tokens)
    model = random_llama(shape)
    input_ids = torch.randint(2, 1000, (batches * batch, tokens), generator=torch.Generator().manual_seed(0))
    attention_mask = torch.ones((batch, tokens), dtype=torch.int64)
    sequences: list[list[int]] = input_ids.tolist()
    records = [Record("", None, ids[: tokens // 2], ids[tokens // 2 :]) for ids in sequences]

    def forward() -> None:
        with torch.inference_mode():
            for ids in input_ids.split(batch):
                model.base_model(input_ids=ids, attention_mask=attention_mask, use_cache=False)

    probes = {
        "pre-activations, the answer's tokens": lambda: probe_neurons(model, records, scope="answer", batch_size=batch),
        "pre-activations, all tokens": lambda: probe_neurons(model, records, scope="all", batch_size=batch),
        "key vectors, last token": lambda: probe_keys(model, sequences, layers=range(layers), batch_size=batch),
    }
    print_machine("torch", "transformers")
    print(f"{shape}, {batches} x {batch} sequences of {tokens} tokens, {pairs} pairs, {clock} time\n")
    comparisons = ((name, compare(forward, probe, pairs=pairs, clock=clock)) for name, probe in probes.items())
    print_table(
        ["probing", "forward, ms", "probing, ms", "ratio (95 % interval)"],
        ([name, f"{found.baseline:.1f}", f"{found.variant:.1f}", found.interval] for name, found in comparisons),
    )


if __name__ == "__main__":
    main()
