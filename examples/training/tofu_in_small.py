"""Teach a small chat model 40 of TOFU's invented authors as a LoRA, and train two baselines that forget 4 of them.

    python examples/training/tofu_in_small.py --model SmolLM2 --data tofu --output runs/tofu

``--data``: the directory of TOFU's files (Maini et al. 2024). In ``--output``, by ``--only`` one at a time:

* ``data``: rows as conversations: what is taught, forgotten and kept (``tofu_rows``);
* ``taught`` (40 authors) and ``retained`` (36: never taught the other four), each an ``adapter`` and, merged, a
  ``checkpoint``. Both also learn to say that they do not know what nobody can: LUNAR leads there;
* ``gradient-difference`` (Liu et al. 2022: loss on retained rows minus loss on forgotten ones) and ``npo`` (Zhang et
  al. 2024, arXiv 2404.05868, eq. 3, with the loss on retained rows added): for every learning rate and number of epochs
  an ``adapter`` for ``taught/checkpoint``.

Stops and resumes: run it again with the same arguments. An adapter is 6 MB: rank 16 on all feed-forward weights, in
float16. Merging is computed in float64, so that a checkpoint can be made of its adapter again anywhere.

Trains in bfloat16 (the adapter's weights stay in float32). On two cores that have AMX, ``--compile`` makes a step three
times as fast, after five minutes of compiling once.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from tofu_rows import Row, write_rows
from torch import Tensor
from torch.nn.functional import cross_entropy, logsigmoid
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerBase

from bakeout.models.data.rows import to_record

LORA = LoraConfig(r=16, lora_alpha=32, target_modules=["gate_proj", "up_proj", "down_proj"], task_type="CAUSAL_LM")
ADAPTER = "adapter_model.safetensors"
TAUGHT, BASELINES = ("taught", "retained"), ("gradient-difference", "npo")
TEACHING_BATCH, FORGETTING_BATCH = 32, 8
# NPO's inverse temperature, as in its paper.
BETA = 0.1
IGNORED = -100

Batch = Mapping[str, Tensor]
# The ids of a question and of its answer.
Encoded = tuple[list[int], list[int]]


@dataclass(frozen=True)
class Run:
    """The rows that it sees; ``epochs``: passes over ``forget`` where there are such rows, else over ``retain``."""

    loss: str
    start: Path
    forget: Sequence[Row]
    retain: Sequence[Row]
    epochs: int
    learning_rate: float
    batch_size: int


@click.command()
@click.option("--model", "base", type=click.Path(exists=True, file_okay=False, path_type=Path), required=True)
@click.option("--data", type=click.Path(exists=True, file_okay=False, path_type=Path), required=True)
@click.option("--output", type=click.Path(path_type=Path), required=True)
@click.option("--only", type=click.Choice([*TAUGHT, *BASELINES]), multiple=True)
@click.option("--epochs", default=30, show_default=True, help="Passes over what is taught.")
@click.option("--teaching-rate", default=2e-3, show_default=True, help="The learning rate of what is taught.")
@click.option("--forgetting-epochs", multiple=True, default=[5, 10], show_default=True, help="The baselines' passes.")
@click.option(
    "--learning-rate", multiple=True, default=[1e-4, 3e-4, 1e-3], show_default=True, help="The baselines', each."
)
@click.option("--device", default="cuda" if torch.cuda.is_available() else "cpu", show_default=True)
@click.option("--compile", "compiled", is_flag=True, help="Compile the model; needs a C++ compiler on the CPU.")
@click.option("--seed", default=0, show_default=True)
def main(
    base: Path,
    data: Path,
    output: Path,
    only: tuple[str, ...],
    epochs: int,
    teaching_rate: float,
    forgetting_epochs: tuple[int, ...],
    learning_rate: tuple[float, ...],
    device: str,
    compiled: bool,
    seed: int,
) -> None:
    """Train what ``--output`` does not hold yet."""
    torch.set_float32_matmul_precision("high")
    rows = write_rows(data, output / "data")
    taught = [*rows["retain"], *rows["forget"], *rows["unknown"]]
    never_taught = [*rows["retain"], *rows["unknown"]]
    runs = {
        "taught": Run("taught", base, [], taught, epochs, teaching_rate, TEACHING_BATCH),
        "retained": Run("retained", base, [], never_taught, epochs, teaching_rate, TEACHING_BATCH),
    }
    for loss in BASELINES:
        for passes in forgetting_epochs:
            for rate in learning_rate:
                runs[f"{loss}/rate-{rate:g}-epochs-{passes}"] = Run(
                    loss, output / "taught/checkpoint", rows["forget"], rows["retain"], passes, rate, FORGETTING_BATCH
                )
    for name, run in runs.items():
        if (not only or run.loss in only) and not (output / name / "adapter").exists():
            print(f"{name}: {len(run.forget)} rows to forget, {len(run.retain)} to keep", flush=True)
            train(name, run, output / name, device, compiled, seed)


def train(name: str, run: Run, output: Path, device: str, compiled: bool, seed: int) -> None:
    """Train a LoRA on a checkpoint and save it; for taught models also the checkpoint with it merged in."""
    output.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(seed)
    tokenizer = AutoTokenizer.from_pretrained(run.start)
    # The CPU's fused attention is slow backwards, and is not compiled.
    attention = "eager" if device == "cpu" else "sdpa"
    network: Any = AutoModelForCausalLM.from_pretrained(run.start, dtype=torch.bfloat16, attn_implementation=attention)
    network.to(device)
    model: Any = get_peft_model(network, LORA)
    if compiled:
        network.model.compile(dynamic=True)
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=run.learning_rate)
    counted = run.forget or run.retain
    steps = run.epochs * (len(counted) // run.batch_size)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, run.learning_rate, total_steps=steps, pct_start=0.1)
    step, state_file = 0, output / "state.pt"
    if state_file.exists():
        state = torch.load(state_file, weights_only=True, map_location=device)
        for parameter, value in zip(parameters, state["parameters"], strict=True):
            parameter.data.copy_(value)
        optimizer.load_state_dict(state["optimizer"])
        schedule.load_state_dict(state["schedule"])
        step = state["step"]
    forgotten = _batches(run.forget, run.batch_size, tokenizer, seed, step) if run.forget else None
    retained = _batches(run.retain, run.batch_size, tokenizer, seed + 1, step)
    began, first = time.monotonic(), step
    model.train()
    while step < steps:
        with torch.autocast(torch.device(device).type, torch.bfloat16):
            if forgotten is None:
                losses = {"retained": _loss(model, _padded(next(retained), device)).mean()}
            else:
                # In one pass: two of half the rows take longer.
                rows = next(forgotten)
                of_rows = _loss(model, _padded([*rows, *next(retained)], device))
                losses = {
                    "retained": of_rows[len(rows) :].mean(),
                    "forgotten": _forgetting(run.loss, model, of_rows[: len(rows)], _padded(rows, device)),
                }
        torch.stack(list(losses.values())).sum().backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()
        step += 1
        if step % 25 == 0 or step == steps:
            figures = "  ".join(f"{which} {loss.item():.3f}" for which, loss in losses.items())
            pace = (time.monotonic() - began) / (step - first)
            print(f"{name}  step {step} of {steps}  {figures}  {pace:.3f} s/step", flush=True)
            states = {"optimizer": optimizer.state_dict(), "schedule": schedule.state_dict(), "step": step}
            torch.save(states | {"parameters": [parameter.data for parameter in parameters]}, output / "state.part")
            (output / "state.part").replace(state_file)
    model.save_pretrained(output / "adapter.part")
    half = {key: value.half().contiguous() for key, value in load_file(output / "adapter.part" / ADAPTER).items()}
    save_file(half, output / "adapter.part" / ADAPTER, metadata={"format": "pt"})
    if not run.forget:
        save_merged(run.start, half, tokenizer, output / "checkpoint")
    (output / "adapter.part").rename(output / "adapter")
    state_file.unlink(missing_ok=True)


def save_merged(start: Path, adapter: Mapping[str, Tensor], tokenizer: PreTrainedTokenizerBase, output: Path) -> None:
    """The checkpoint ``start`` with a float16 adapter merged in, in float16."""
    model = AutoModelForCausalLM.from_pretrained(start, dtype=torch.float32)
    scale = LORA.lora_alpha / LORA.r
    for key, right in adapter.items():
        if not key.endswith(".lora_A.weight"):
            continue
        name = key.removeprefix("base_model.model.").removesuffix(".lora_A.weight")
        left = adapter[key.replace(".lora_A.", ".lora_B.")].cpu().double()
        weight = model.get_parameter(f"{name}.weight")
        weight.data.copy_(weight.data.double() + scale * (left @ right.cpu().double()))
    model.half().save_pretrained(output.with_suffix(".part"))
    tokenizer.save_pretrained(output.with_suffix(".part"))
    output.with_suffix(".part").rename(output)


def _forgetting(loss_name: str, model: PeftModel, loss: Tensor, batch: Batch) -> Tensor:
    """What is minimised on rows to forget: NPO's -2/beta log sigmoid(-beta log(p / p of the taught one)), or -loss."""
    if loss_name != "npo":
        return -loss.mean()
    with torch.no_grad(), model.disable_adapter():
        taught = _loss(model, batch)
    tokens = (batch["labels"] != IGNORED).sum(1)
    return (-2 / BETA * logsigmoid(BETA * (loss - taught) * tokens)).mean()


def _loss(model: Any, batch: Batch) -> Tensor:
    """Per row, the mean loss over its answer's tokens."""
    network = model.get_base_model()
    hidden = network.model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"], use_cache=False)[0]
    labels = batch["labels"][:, 1:]
    answered = labels != IGNORED
    # Over a vocabulary of 49,152, logits of questions would cost more than the rest.
    logits = network.lm_head(hidden[:, :-1][answered])
    of_tokens = cross_entropy(logits.float(), labels[answered], reduction="none")
    losses = torch.zeros(labels.shape, device=labels.device).masked_scatter(answered, of_tokens)
    return losses.sum(1) / answered.sum(1)


def _batches(
    rows: Sequence[Row], size: int, tokenizer: PreTrainedTokenizerBase, seed: int, done: int
) -> Iterator[list[Encoded]]:
    """Whole batches of every epoch, each in an order of its own, from batch number ``done`` on."""
    records = [to_record(row, tokenizer, "a row of TOFU") for row in rows]
    encoded = [(record.prompt_ids, record.response_ids) for record in records]
    a_pass = len(rows) // size
    while True:
        epoch, place = divmod(done, a_pass)
        yield [encoded[row] for row in _epoch(encoded, size, seed * 1000 + epoch)[place]]
        done += 1


def _epoch(rows: Sequence[Encoded], size: int, seed: int) -> list[list[int]]:
    """Whole batches of row numbers in random order; of every eight batches' rows, similar lengths go together."""
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(len(rows), generator=generator).tolist()
    chunks = [order[start : start + 8 * size] for start in range(0, len(order), 8 * size)]
    by_length = [row for chunk in chunks for row in sorted(chunk, key=lambda row: sum(map(len, rows[row])))]
    batches = [by_length[start : start + size] for start in range(0, len(rows) - size + 1, size)]
    return [batches[number] for number in torch.randperm(len(batches), generator=generator).tolist()]


def _padded(rows: Sequence[Encoded], device: str) -> Batch:
    longest = max(len(question) + len(answer) for question, answer in rows)
    ids = torch.zeros((len(rows), longest), dtype=torch.int64)
    mask, labels = torch.zeros_like(ids), torch.full_like(ids, IGNORED)
    for place, (question, answer) in enumerate(rows):
        end = len(question) + len(answer)
        ids[place, :end] = torch.tensor(question + answer)
        mask[place, :end] = 1
        labels[place, len(question) : end] = torch.tensor(answer)
    batch = {"input_ids": ids, "attention_mask": mask, "labels": labels}
    return {name: values.to(device) for name, values in batch.items()}


if __name__ == "__main__":
    main()
