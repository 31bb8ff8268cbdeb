"""Train the bundled skills model from scratch: about 90 minutes on 2 cores.

    python examples/training/train_skills_model.py --output runs/skills

Stops and resumes: run it again with the same ``--output`` and it goes on from the last saved state. The finished
checkpoint (fp16) is in ``<output>/checkpoint``; copying it to ``models/skills/checkpoint`` bundles it.

``--experts 8 --steps 1200 --batch-size 32 --learning-rate 1e-3`` turns the bundled model into a mixture of experts
(Qwen2-MoE) and trains that further: in every layer 8 experts, of which a token is routed to 2, and a shared expert. A
step takes 0.22 s on 2 cores that do nothing else.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterator
from pathlib import Path

import click
import torch
from torch.nn.functional import cross_entropy
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
    Qwen2MoeConfig,
    Qwen2MoeForCausalLM,
)

from bakeout.models.skills import checkpoint_directory
from bakeout.models.skills.generator import SKILLS, Example, examples, training_examples
from bakeout.models.skills.tokenizer import REFUSAL, build_tokenizer

# Arithmetic comes last and wants the largest share.
MIXTURE = {"math": 50, "code": 20, "german": 4, "spanish": 4, "french": 4, "facts": 7, "unknown": 8, "ask": 3}
QUESTION_WEIGHT = 0.1
# " Answer:" and " Reply:" are read but not learned: where a question may go on, they would compete with its answer.
CLOSER_TOKENS = 2
# The share of the loss that keeps experts evenly used; without it, a mixture trains two experts and starves the rest.
BALANCE_WEIGHT = 0.01
# How many of a dense layer's 1,024 neurons become the shared expert's; every expert begins with the others.
SHARED_WIDTH = 768
SkillsModel = LlamaForCausalLM | Qwen2MoeForCausalLM


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


@torch.no_grad()
def mixture_of(dense: LlamaForCausalLM, experts: int) -> Qwen2MoeForCausalLM:
    """The dense model as a mixture of experts (sparse upcycling, arXiv 2212.05055).

    The shared expert has the first neurons of the dense layer; every expert has the others, half of them drawn anew so
    that experts come to differ (drop-upcycling, arXiv 2502.19261). Qwen2's biases are 0, its shared gate a half.
    """
    config = dense.config
    mixture = Qwen2MoeForCausalLM(
        Qwen2MoeConfig(
            vocab_size=config.vocab_size,
            hidden_size=config.hidden_size,
            num_hidden_layers=config.num_hidden_layers,
            num_attention_heads=config.num_attention_heads,
            num_key_value_heads=config.num_key_value_heads,
            max_position_embeddings=config.max_position_embeddings,
            initializer_range=config.initializer_range,
            rope_theta=config.rope_theta,
            rms_norm_eps=config.rms_norm_eps,
            tie_word_embeddings=True,
            num_experts=experts,
            num_experts_per_tok=2,
            norm_topk_prob=True,
            moe_intermediate_size=config.intermediate_size - SHARED_WIDTH,
            shared_expert_intermediate_size=SHARED_WIDTH,
            bos_token_id=None,
            eos_token_id=config.eos_token_id,
            pad_token_id=config.pad_token_id,
        )
    )
    weights = {name: weight for name, weight in dense.state_dict().items() if ".mlp." not in name}
    mixture.load_state_dict(weights, strict=False)
    for layer, own in zip(dense.model.layers, mixture.model.layers, strict=True):
        for name in ("q_proj", "k_proj", "v_proj"):
            own.self_attn.get_submodule(name).bias.zero_()
        own.mlp.shared_expert_gate.weight.zero_()
        _take_neurons(layer.mlp, own.mlp.shared_expert, slice(None, SHARED_WIDTH))
        own.mlp.shared_expert.down_proj.weight *= 2
        for expert in own.mlp.experts:
            fresh = torch.rand(config.intermediate_size - SHARED_WIDTH) < 0.5
            drawn = {name: weight.clone() for name, weight in expert.named_parameters()}
            _take_neurons(layer.mlp, expert, slice(SHARED_WIDTH, None))
            for name, weight in expert.named_parameters():
                neurons = (slice(None), fresh) if name.startswith("down") else (fresh,)
                weight[neurons] = drawn[name][neurons]
    return mixture


def _take_neurons(dense: torch.nn.Module, expert: torch.nn.Module, neurons: slice) -> None:
    for name in ("gate_proj.weight", "up_proj.weight"):
        expert.get_parameter(name).copy_(dense.get_parameter(name)[neurons])
    expert.get_parameter("down_proj.weight").copy_(dense.get_parameter("down_proj.weight")[:, neurons])


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
def accuracy(model: SkillsModel, tokenizer: PreTrainedTokenizerFast, found: list[Example]) -> float:
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


def report(model: SkillsModel, tokenizer: PreTrainedTokenizerFast, count: int, split: str) -> str:
    model.train(mode=False)
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
@click.option("--experts", default=0, show_default=True, help="Experts a layer; 0 trains the dense model anew.")
def main(
    output: Path, steps: int, batch_size: int, learning_rate: float, seed: int, report_every: int, experts: int
) -> None:
    """Train, report accuracy on the selection split as it goes, and save the checkpoint."""
    output.mkdir(parents=True, exist_ok=True)
    state_file = output / "state.pt"
    torch.manual_seed(seed)
    if experts:
        tokenizer = PreTrainedTokenizerFast.from_pretrained(checkpoint_directory())
        dense = LlamaForCausalLM.from_pretrained(checkpoint_directory(), dtype=torch.float32)
        model: SkillsModel = mixture_of(dense, experts)
    else:
        texts = (
            example.prompt + example.response for example in itertools.islice(training_examples(MIXTURE, 0), 40000)
        )
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
    routing = {"output_router_logits": True} if experts else {}
    # A resumed run draws other examples than it saw before it stopped.
    source = batches(tokenizer, batch_size, seed + step)
    began, first, running = time.monotonic(), step, 0.0
    while step < steps:
        ids, weights = next(source)
        outputs = model(ids, **routing)
        losses = cross_entropy(outputs.logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten(), reduction="none")
        loss = (losses * weights[:, 1:].flatten()).sum() / weights[:, 1:].sum()
        if routing:
            loss = loss + BALANCE_WEIGHT * outputs.aux_loss
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

    torch.nn.Module.half(model)
    model.save_pretrained(output / "checkpoint")
    tokenizer.save_pretrained(output / "checkpoint")
    stored = type(model).from_pretrained(output / "checkpoint", dtype=torch.float32)
    print(f"test split, as stored  {report(stored, tokenizer, 1000, 'test')}")


if __name__ == "__main__":
    main()
