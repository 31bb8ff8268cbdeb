"""How many tokens should one forward pass hold on this processor?

    python examples/benchmarks/pass_size.py SmolLM2 --data DIRECTORY

Reads GSM8K's questions and answers, without the head, by passes of several sizes, in turn; the fastest of ``--rounds``
counts. ``DIRECTORY`` holds gsm8k_train.jsonl. What a fit takes is ``tokens_at_once`` (its row is marked).
"""

from __future__ import annotations

import time
from pathlib import Path

import click
import torch
from comparison import print_machine, print_table
from torch_answers import checkpoint_on, json_lines

from bakeout.models.checkpoint.placement import Dtype
from bakeout.models.data.padding import right_padded
from bakeout.models.data.rows import to_record
from bakeout.models.data.tokenizers.tokenization import load_tokenizer
from bakeout.models.network.devices import tokens_at_once
from bakeout.models.network.probing import batches_by_length

SIZES = (512, 1024, 2048, 4096, 8192)


@click.command()
@click.argument("directory", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option("--data", type=click.Path(exists=True, file_okay=False, path_type=Path), required=True)
@click.option("--dtype", type=click.Choice(["float32", "bfloat16"]), default="float32", show_default=True)
@click.option("--rows", default=64, show_default=True)
@click.option("--rounds", default=2, show_default=True)
def main(directory: Path, data: Path, dtype: Dtype, rows: int, rounds: int) -> None:
    """Measure and print a table."""
    model, tokenizer = checkpoint_on(directory, "cpu", dtype).load(), load_tokenizer(directory)
    asked = json_lines(data / "gsm8k_train.jsonl")[:rows]
    texts = [{"prompt": row["question"] + "\n", "response": row["answer"]} for row in asked]
    records = [to_record(text, tokenizer, "a row of GSM8K") for text in texts]
    sequences = [record.prompt_ids + record.response_ids for record in records]
    lengths, taken = [len(sequence) for sequence in sequences], tokens_at_once(model)

    @torch.inference_mode()
    def seconds(size: int) -> float:
        began = time.monotonic()
        for batch in batches_by_length(lengths, len(lengths), most_tokens=size):
            ids, mask = map(torch.from_numpy, right_padded([sequences[row] for row in batch]))
            model.base_model(input_ids=ids, attention_mask=mask, use_cache=False)
        return time.monotonic() - began

    seconds(SIZES[0])
    fastest = dict.fromkeys(SIZES, float("inf"))
    for _ in range(rounds):
        for size in SIZES:
            fastest[size] = min(fastest[size], seconds(size))
    print_machine("torch", "transformers")
    print(f"{sum(lengths)} tokens, {dtype}, {torch.get_num_threads()} threads\n")
    print_table(
        ["tokens a pass", "seconds", f"of {SIZES[-1]}"],
        (
            [f"{size}{', taken' if size == taken else ''}", f"{own:.1f}", f"{own / fastest[SIZES[-1]]:.2f}"]
            for size, own in fastest.items()
        ),
    )


if __name__ == "__main__":
    main()
