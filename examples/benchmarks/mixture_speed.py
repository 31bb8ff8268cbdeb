"""What interventions cost in the graph of a mixture of experts: baked beside unbaked, of optimum's export.

A Qwen2-MoE with random weights (8 experts a layer, of which a token is routed to 2, beside a shared expert) of more
than 100 M parameters; a prefill, and decode behind it.

    python examples/benchmarks/mixture_speed.py --cache /tmp/bakeout-mixture-speed
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import click
import numpy as np
import torch
from comparison import compare_loaded, print_machine, print_table
from random_llama import REFUSAL, export, neuron_adjust
from transformers import PreTrainedModel, Qwen2MoeConfig, Qwen2MoeForCausalLM
from workloads import OPENING, Workload, loaded, require_outcome

from bakeout.export.running.runner import Runner
from bakeout.graph_passes.apply import apply_plan
from bakeout.graph_passes.graph.graph_file import load_graph, save_graph
from bakeout.models.network.families import identity
from bakeout.models.network.key_sites import key_sites
from bakeout.models.plan import Canary, Cubes, Intervention, Keys, KeySpaceDetection, Plan

LAYERS, EXPERTS, HIDDEN, WIDTH, VOCABULARY = 8, 8, 512, 1024, 16000
KINDS: tuple[Keys, ...] = ("key_vector", "router_input", "router_logits")


@click.command()
@click.option("--prompt", default=128, show_default=True, help="Tokens of a prefill.")
@click.option("--loads", default=8, show_default=True, help="How often the sessions of a ratio are loaded.")
@click.option("--pairs", default=15, show_default=True, help="Interleaved pairs a load.")
@click.option("--threads", type=int, help="Threads; by default ONNX Runtime chooses.")
@click.option("--clock", type=click.Choice(["wall", "processor"]), default="wall", show_default=True)
@click.option("--cache", type=click.Path(path_type=Path), help="Where the graph is kept for the next time.")
def main(prompt: int, loads: int, pairs: int, threads: int | None, clock: str, cache: Path | None) -> None:
    """Measure and print a table. On a machine that is busy otherwise: --threads 1 --clock processor."""
    print_machine("onnxruntime-gpu", "optimum-onnx")
    model = random_mixture(2 * prompt + OPENING)
    print(
        f"{model.num_parameters() / 1e6:.0f} M parameters, {loads} loads of {pairs} pairs, {clock} time\n", flush=True
    )
    workloads = [Workload(f"decode at {prompt}", prompt, 1), Workload(f"prefill of {prompt}", 0, prompt)]

    def rows(directory: Path) -> Iterator[list[str]]:
        unbaked = Runner(directory, threads=threads)
        for name, intervention in interventions(model).items():
            path = bake(directory, model, intervention)
            for workload in workloads:
                require_outcome(unbaked, Runner(path, threads=threads), intervention, workload)
                sessions = (loaded(graph, workload, threads) for graph in (directory, path))
                measured = compare_loaded(*sessions, loads=loads, pairs=pairs, clock=clock)
                times = f"{measured.baseline:.1f}", f"{measured.variant:.1f}"
                yield [workload.name, name, *times, measured.interval]

    with tempfile.TemporaryDirectory() as temporary:
        directory = cache or Path(temporary)
        if not (directory / "model.onnx").is_file():
            export(model, directory)
        print_table(["run", "intervention", "unbaked, ms", "baked, ms", "ratio (95 % interval)"], rows(directory))


def random_mixture(context: int) -> PreTrainedModel:
    """The mixture, fp32, in evaluation mode, with the weights that training would start from."""
    torch.manual_seed(0)
    configuration = Qwen2MoeConfig(
        vocab_size=VOCABULARY,
        hidden_size=HIDDEN,
        num_hidden_layers=LAYERS,
        num_attention_heads=8,
        num_key_value_heads=8,
        max_position_embeddings=context,
        num_experts=EXPERTS,
        num_experts_per_tok=2,
        norm_topk_prob=True,
        moe_intermediate_size=WIDTH,
        shared_expert_intermediate_size=WIDTH,
        bos_token_id=1,
        eos_token_id=1,
        pad_token_id=0,
    )
    model: PreTrainedModel = Qwen2MoeForCausalLM(configuration).eval()
    return model


def interventions(model: PreTrainedModel) -> dict[str, Intervention]:
    """Key Space Detection in a middle layer, on each kind of keys, which every query passes; and Neuron Adjust of 3 %
    of the neurons of shared experts, and of all experts.
    """
    layer = LAYERS // 2 - 1
    detections = {f"KSD on {keys} {layer}, passing": passing(model, keys, layer) for keys in KINDS}
    return {
        **detections,
        "NA of shared experts": neuron_adjust(LAYERS, WIDTH, "threshold"),
        "NA of all experts": neuron_adjust(LAYERS * (1 + EXPERTS), WIDTH, "threshold"),
    }


def passing(model: PreTrainedModel, keys: Keys, layer: int) -> KeySpaceDetection:
    """A cube about 0 that no key is in."""
    width = key_sites(model, keys)[layer].width
    return KeySpaceDetection(
        layers=(layer,),
        regions=Cubes(np.zeros((1, width)), np.ones((1, width))),
        alpha=np.array([1e-6]),
        skills=("nothing",),
        refusal=np.array(REFUSAL),
        keys=keys,
    )


def bake(directory: Path, model: PreTrainedModel, intervention: Intervention) -> Path:
    """``directory/baked.onnx``: the graph that lies there, baked, with the same data file."""
    graph = load_graph(directory / "model.onnx")
    canary = Canary(np.zeros((1, 1), np.int64), (np.full((1, 1), np.nan),))
    apply_plan(graph, Plan(identity(model, "0" * 64), (intervention,), canary))
    path = directory / "baked.onnx"
    # The one before: its session has read it.
    path.unlink(missing_ok=True)
    save_graph(graph, path)
    return path


if __name__ == "__main__":
    main()
