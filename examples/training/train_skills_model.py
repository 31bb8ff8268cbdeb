"""Train the bundled skills model from scratch: about 90 minutes on 2 cores.

    python examples/training/train_skills_model.py --output runs/skills

Stops and resumes: run it again with the same ``--output`` and it goes on from the last saved state. The finished
checkpoint (fp16) is in ``<output>/checkpoint``; copying it to ``models/skills/checkpoint`` bundles it.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterator
from pathlib import Path

import click
import torch
from torch.nn.functional import cross_entropy
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from bakeout.models.skills.generator import SKILLS, Example, examples, training_examples
from bakeout.models.skills.tokenizer import REFUSAL, build_tokenizer

# Arithmetic comes last and wants the largest share.
MIXTURE = {"math": 50, "code": 20, "german": 4, "spanish": 4, "french": 4, "facts": 7, "unknown": 8, "ask": 3}
QUESTION_WEIGHT = 0.1
# " Answer:" and " Reply:" are read but not learned: where a question may go on, they would compete with its answer.
CLOSER_TOKENS = 2


def new_model(tokenizer: PreTrainedTokenizerFast) -> LlamaForCausalLM:
    """Six layers, narrow in the residual stream and wide in the FFLs, where Key Space Detection looks."""
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=128,
            intermediate_size=1024,
            num_hidden_layers=6,
            num_attention_heads=4,
            num_key_value_heads=4,
            max_position_embeddings=512,
            # Both for a narrow model and short texts: at the usual 0.02 and 10,000 arithmetic is not learned in time.
            initializer_range=0.09,
            rope_theta=1000.0,
            tie_word_embeddings=True,
            bos_token_id=None,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )


def batches(
    tokenizer: PreTrainedTokenizerFast, batch_size: int, seed: int
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """(token ids, loss weights), right-padded; examples of like length share a batch."""
    stream = training_examples(MIXTURE, seed)
    end = tokenizer.eos_token_id
    draw = torch.Generator().manual_seed(seed)
    while True:
        pool = list(itertools.islice(stream, 32 * batch_size))
        questions = tokenizer([example.prompt for example in pool]).input_ids
        closed = [example.prompt.endswith((" Answer:", " Reply:")) for example in pool]
        answers = tokenizer([example.response for example in pool]).input_ids
        rows = sorted(zip(questions, answers, closed, strict=True), key=lambda row: len(row[0]) + len(row[1]))
        for index in torch.randperm(32, generator=draw).tolist():
            batch = rows[index * batch_size : (index + 1) * batch_size]
            width = max(len(question) + len(answer) + 1 for question, answer, _ in batch)
            ids = torch.full((batch_size, width), tokenizer.pad_token_id)
            weights = torch.zeros(batch_size, width)
            for row, (question, answer, is_closed) in enumerate(batch):
                text = question + answer + [end]
                ids[row, : len(text)] = torch.tensor(text)
                weights[row, : len(question)] = QUESTION_WEIGHT
                if is_closed:
                    weights[row, len(question) - CLOSER_TOKENS : len(question)] = 0.0
                weights[row, len(question) : len(text)] = 1.0
            yield ids, weights


@torch.inference_mode()
def accuracy(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, found: list[Example]) -> float:
    """Share of examples whose greedy answer is the response, to the letter."""
    right = 0
    for start in range(0, len(found), 250):
        part = found[start : start + 250]
        inputs = tokenizer([example.prompt for example in part], return_tensors="pt", padding=True)
        inputs.pop("token_type_ids", None)
        ids = model.generate(**inputs, max_new_tokens=16, do_sample=False)
        answers = tokenizer.batch_decode(ids[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
        right += sum(answer == example.response for answer, example in zip(answers, part, strict=True))
    return right / len(found)


def report(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, count: int, split: str) -> str:
    model.eval()
    figures = {skill: accuracy(model, tokenizer, examples(skill, split, count)) for skill in SKILLS}
    model.train()
    return "  ".join(f"{skill} {figure:.1%}" for skill, figure in figures.items())


@click.command()
@click.option(
    "--output", type=click.Path(path_type=Path), required=True, help="Where the states and the checkpoint go."
)
@click.option("--steps", default=10000, show_default=True)
@click.option("--batch-size", default=64, show_default=True)
@click.option("--learning-rate", default=1.5e-3, show_default=True)
@click.option("--seed", default=0, show_default=True)
@click.option("--report-every", default=500, show_default=True)
def main(output: Path, steps: int, batch_size: int, learning_rate: float, seed: int, report_every: int) -> None:
    """Train, report accuracy on the selection split as it goes, and save the checkpoint."""
    output.mkdir(parents=True, exist_ok=True)
    state_file = output / "state.pt"
    torch.manual_seed(seed)
    texts = (example.prompt + example.response for example in itertools.islice(training_examples(MIXTURE, 0), 40000))
    tokenizer = build_tokenizer(itertools.chain(texts, [" " + REFUSAL]))
    model = new_model(tokenizer)
    decayed = [parameter for parameter in model.parameters() if parameter.dim() == 2]
    others = [parameter for parameter in model.parameters() if parameter.dim() != 2]
    optimizer = torch.optim.AdamW(
        [{"params": decayed, "weight_decay": 0.02}, {"params": others, "weight_decay": 0.0}],
        lr=learning_rate,
        betas=(0.9, 0.98),
    )
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, learning_rate, total_steps=steps, pct_start=0.04, cycle_momentum=False, final_div_factor=100
    )
    step = 0
    if state_file.exists():
        state = torch.load(state_file, weights_only=True)
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        schedule.load_state_dict(state["schedule"])
        step = state["step"]
    print(f"{model.num_parameters() / 1e6:.1f} M parameters, {len(tokenizer)} tokens, from step {step}", flush=True)

    model.train()
    # A resumed run draws other examples than it saw before it stopped.
    source = batches(tokenizer, batch_size, seed + step)
    began, first, running = time.monotonic(), step, 0.0
    while step < steps:
        ids, weights = next(source)
        logits = model(ids).logits[:, :-1]
        losses = cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten(), reduction="none")
        loss = (losses * weights[:, 1:].flatten()).sum() / weights[:, 1:].sum()
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        step += 1
        running = 0.98 * running + 0.02 * loss.item() if step > first + 1 else loss.item()
        if step % 100 == 0:
            print(
                f"step {step}  loss {running:.4f}  {(time.monotonic() - began) / (step - first):.3f} s/step", flush=True
            )
        if step % report_every == 0 or step == steps:
            print(f"step {step}  {report(model, tokenizer, 200, 'selection')}", flush=True)
            states = {"model": model.state_dict(), "optimizer": optimizer.state_dict()}
            torch.save(states | {"schedule": schedule.state_dict(), "step": step}, output / "state.part")
            (output / "state.part").replace(state_file)

    model.half().save_pretrained(output / "checkpoint")
    tokenizer.save_pretrained(output / "checkpoint")
    stored = LlamaForCausalLM.from_pretrained(output / "checkpoint", dtype=torch.float32)
    print(f"test split, as stored  {report(stored, tokenizer, 1000, 'test')}")


if __name__ == "__main__":
    main()
