"""GSM8K against MBPP queries in a small model trained on both: the paper's Figures 5 and 6, from one command.

    python examples/benchmarks/real_text.py --output runs/benchmarks/real_text

Trains a Llama of 1.7 M parameters on the text (some minutes on one core; it stops and resumes), puts one cube around
the key vectors of GSM8K queries in every layer, and draws what else is inside. Where the data are absent it says so.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM

from bakeout.export.report import plots
from bakeout.export.report.figures_file import Depth, Inside, figures_json
from bakeout.models.methods.key_space_detection.detection import fit_key_space_detection, margins_of_keys
from bakeout.models.methods.key_space_detection.figures import depth_figure, inside_figures
from bakeout.models.methods.key_space_detection.options import KeySpaceDetectionOptions
from bakeout.models.network.probing import probe_keys
from bakeout.models.plan import KeySpaceDetection

DATA = Path(__file__).resolve().parents[3] / "shared" / "data"
SOURCE = "examples/benchmarks/real_text.py: fresh GSM8K and MBPP queries, a Llama trained on such text"
FORGOTTEN = "gsm8k"
EPSILON = 0.005
# Rows: trained on; then, fresh to the model, to probe, to calibrate alpha on and to test.
PARTS = {
    "gsm8k": {"training": (0, 5000), "probe": (5000, 6000), "calibration": (6000, 6800), "test": (6800, 7473)},
    "mbpp": {"training": (0, 300), "test": (300, 600)},
}
VOCABULARY, HIDDEN, WIDTH, LAYERS = 2048, 128, 768, 4
# Windows are drawn from both data sets in turn, though MBPP is much the smaller one.
BATCH, TOKENS = 8, 128
END = "<|end|>"

Row = tuple[str, str]


def read(directory: Path) -> dict[str, list[Row]]:
    """(query, answer) by data set."""
    gsm8k = [json.loads(line) for line in (directory / "gsm8k_train.jsonl").read_text(encoding="utf-8").splitlines()]
    mbpp = [json.loads(line) for line in (directory / "mbpp.jsonl").read_text(encoding="utf-8").splitlines()]
    return {
        "gsm8k": [(row["question"], row["answer"]) for row in gsm8k],
        "mbpp": [(row["text"], row["code"].replace("\r\n", "\n")) for row in mbpp],
    }


def part(rows: Sequence[Row], name: str, use: str) -> list[Row]:
    """The rows of a data set for one use."""
    start, end = PARTS[name][use]
    return list(rows[start:end])


def new_tokenizer(texts: Iterator[str]) -> Tokenizer:
    """Byte-level BPE."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY, special_tokens=[END], initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


def new_model() -> LlamaForCausalLM:
    """Random weights."""
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=VOCABULARY,
            hidden_size=HIDDEN,
            intermediate_size=WIDTH,
            num_hidden_layers=LAYERS,
            num_attention_heads=4,
            num_key_value_heads=4,
            max_position_embeddings=1024,
            tie_word_embeddings=True,
            bos_token_id=None,
            eos_token_id=0,
        )
    )


def train(model: LlamaForCausalLM, streams: Sequence[torch.Tensor], steps: int, directory: Path) -> None:
    """Train on windows of the data sets' text, in turn; the state is kept every 50 steps."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3, betas=(0.9, 0.98), weight_decay=0.02)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, 2e-3, total_steps=steps, pct_start=0.05, cycle_momentum=False
    )
    kept, step = directory / "state.pt", 0
    if kept.exists():
        state = torch.load(kept, weights_only=True)
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        schedule.load_state_dict(state["schedule"])
        step = state["step"]
    model.train()
    while step < steps:
        draw = torch.Generator().manual_seed(step)
        windows = []
        for row in range(BATCH):
            stream = streams[row % len(streams)]
            start = int(torch.randint(len(stream) - TOKENS, (1,), generator=draw))
            windows.append(stream[start : start + TOKENS])
        ids = torch.stack(windows)
        loss = model(input_ids=ids, labels=ids).loss
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        step += 1
        if step % 50 == 0 or step == steps:
            print(f"step {step} of {steps}: loss {loss.item():.2f}", flush=True)
            states = {"model": model.state_dict(), "optimizer": optimizer.state_dict()}
            torch.save(states | {"schedule": schedule.state_dict(), "step": step}, directory / "state.part")
            (directory / "state.part").replace(kept)
    model.eval()


def figures(model: LlamaForCausalLM, tokenizer: Tokenizer, rows: dict[str, list[Row]]) -> tuple[Inside, Depth]:
    """One cube around GSM8K's queries: in the last layer against alpha, and in every layer."""

    def keys(name: str, use: str) -> dict[int, Any]:
        prompts = [tokenizer.encode(query).ids for query, _ in part(rows[name], name, use)]
        return dict(probe_keys(model, prompts, layers=range(LAYERS), batch_size=16))

    probe, calibration = keys(FORGOTTEN, "probe"), keys(FORGOTTEN, "calibration")
    fresh = {name: keys(name, "test") for name in PARTS}
    print("| layer | alpha | " + " | ".join(f"{name} inside" for name in fresh) + " |\n" + "| --- " * 4 + "|")
    for layer in range(LAYERS):
        check = _cube(probe, calibration, layer)
        inside = {
            name: float((check.margins(found[layer]) <= check.alpha).any(axis=1).mean())
            for name, found in fresh.items()
        }
        print(f"| {layer} | {check.alpha[0]:.1f} | " + " | ".join(f"{share:.1%}" for share in inside.values()) + " |")
    check = _cube(probe, calibration, LAYERS - 1)
    (against_alpha,) = inside_figures(check, {name: margins_of_keys(check, keys, name) for name, keys in fresh.items()})
    depth = depth_figure(FORGOTTEN, probe, fresh)
    return Inside(source=SOURCE, **against_alpha), Depth(source=SOURCE, **depth)


def _cube(probe: dict[int, Any], calibration: dict[int, Any], layer: int) -> KeySpaceDetection:
    return fit_key_space_detection(
        {FORGOTTEN: probe},
        {FORGOTTEN: calibration},
        {},
        KeySpaceDetectionOptions(forget=FORGOTTEN, layers=[layer], epsilon=EPSILON),
        refusal=[1, 0],
    )


@click.command()
@click.option("--output", type=click.Path(path_type=Path), required=True, help="Where state and figures are kept.")
@click.option("--data", type=click.Path(path_type=Path), default=DATA, show_default=True, help="The data's directory.")
@click.option("--steps", default=400, show_default=True, help="Training steps.")
def main(output: Path, data: Path, steps: int) -> None:
    """Train, measure, draw: figures.json for `bakeout report --figures`, and both figures as SVG."""
    if not all((data / name).is_file() for name in ("gsm8k_train.jsonl", "mbpp.jsonl")):
        print(f"Skipped: {data} has no gsm8k_train.jsonl and mbpp.jsonl.")
        return
    output.mkdir(parents=True, exist_ok=True)
    rows = read(data)
    training = {name: [f"{query}\n{answer}" for query, answer in part(rows[name], name, "training")] for name in rows}
    tokenizer_file = output / "tokenizer.json"
    if not tokenizer_file.exists():
        new_tokenizer(text for texts in training.values() for text in texts).save(str(tokenizer_file))
    tokenizer = Tokenizer.from_file(str(tokenizer_file))
    streams = [
        torch.from_numpy(np.concatenate([[*one.ids, 0] for one in tokenizer.encode_batch(texts)]).astype(np.int64))
        for texts in training.values()
    ]
    torch.manual_seed(0)
    model = new_model()
    print(f"{model.num_parameters() / 1e6:.1f} M parameters, {sum(map(len, streams)):,} tokens", flush=True)
    train(model, streams, steps, output)
    inside, depth = figures(model, tokenizer, rows)
    content = json.dumps(figures_json([inside, depth]), indent=1, ensure_ascii=False)
    (output / "figures.json").write_text(content + "\n", encoding="utf-8")
    (output / "figure5.svg").write_text(plots.inside(inside, "figure5"), encoding="utf-8")
    (output / "figure6.svg").write_text(plots.depth(depth, "figure6"), encoding="utf-8")
    print(f"Figures: {output / 'figures.json'}, figure5.svg and figure6.svg beside it.")


if __name__ == "__main__":
    main()
