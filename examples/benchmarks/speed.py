"""What interventions cost, and what an early exit saves: baked graphs against the unbaked one, and against hooks.

A Llama of at least 100 M parameters with random weights; prefill and decode, without and with a long past.

    python examples/benchmarks/speed.py --cache /tmp/bakeout-speed
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from comparison import Action, Comparison, compare, print_machine, print_table
from random_llama import Shape, bake, export, key_space_detection, neuron_adjust, random_llama
from workloads import OPENING, Workload, require_outcome, run, tokens

from bakeout.export.running.runner import Runner
from bakeout.models.plan import Intervention, KeySpaceDetection, NeuronAdjust

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel

Compare = Callable[[Action, Action], Comparison]


@click.command()
@click.option("--layers", default=16, show_default=True)
@click.option("--hidden", default=768, show_default=True)
@click.option("--width", default=3072, show_default=True, help="F, the width of an FFL.")
@click.option("--vocabulary", default=16000, show_default=True)
@click.option("--prompt", default=128, show_default=True, help="Tokens of a prefill.")
@click.option("--past", default=4096, show_default=True, help="Tokens of the long past.")
@click.option("--pairs", default=50, show_default=True, help="Interleaved pairs per ratio.")
@click.option("--threads", type=int, help="Threads of either runtime; by default each chooses.")
@click.option("--clock", type=click.Choice(["wall", "processor"]), default="wall", show_default=True)
@click.option("--cache", type=click.Path(path_type=Path), help="Where the exported model is kept for the next time.")
def main(
    layers: int,
    hidden: int,
    width: int,
    vocabulary: int,
    prompt: int,
    past: int,
    pairs: int,
    threads: int | None,
    clock: str,
    cache: Path | None,
) -> None:
    """Measure and print two tables: baked against unbaked graphs, and hooks in transformers against baked graphs.

    On a machine that is busy otherwise: --threads 1 --clock processor.
    """
    import torch

    head_size = 64
    heads = hidden // head_size
    shape = Shape(layers, hidden, width, vocabulary, heads, max(heads // 3, 1), head_size, past + prompt + OPENING)
    workloads = [
        Workload(f"decode at {prompt}", prompt, 1),
        Workload(f"decode at {past}", past, 1),
        Workload(f"prefill of {prompt}", 0, prompt),
        Workload(f"prefill of {prompt} at {past}", past, prompt),
    ]
    interventions: dict[str, Intervention] = {
        "NA 3 %, threshold": neuron_adjust(shape.layers, shape.width, "threshold"),
        "NA 3 %, expected": neuron_adjust(shape.layers, shape.width, "expected"),
        f"KSD in layer {layers // 2 - 1}, passing": key_space_detection(shape, refuses=False, layer=layers // 2 - 1),
        f"KSD in layer {layers // 2 - 1}, refused": key_space_detection(shape, refuses=True, layer=layers // 2 - 1),
    }
    model = random_llama(shape)
    if threads is not None:
        torch.set_num_threads(threads)
    print_machine("onnxruntime-gpu", "torch", "transformers")
    print(f"{model.num_parameters() / 1e6:.0f} M parameters, {shape}, {pairs} pairs, {clock} time\n", flush=True)
    compared = partial(compare, pairs=pairs, clock=clock)
    with tempfile.TemporaryDirectory() as temporary:
        directory = (cache or Path(temporary)) / "-".join(map(str, (layers, hidden, width, vocabulary, past + prompt)))
        unbaked = Runner(_exported(model, directory), threads=threads)
        baked = {
            name: Runner(bake(directory, shape, intervention), threads=threads)
            for name, intervention in interventions.items()
        }
        print(f"{unbaked.provider}\n")
        print_table(
            ["run", "intervention", "unbaked, ms", "baked, ms", "ratio (95 % interval)"],
            _baked_rows(unbaked, baked, interventions, workloads, compared),
        )
        print()
        print_table(
            ["run", "intervention", "baked, ms", "hooks in transformers, ms", "ratio (95 % interval)"],
            _hooked_rows(model, {"none": unbaked, **baked}, interventions, workloads, compared),
        )


def _baked_rows(
    unbaked: Runner,
    baked: Mapping[str, Runner],
    interventions: Mapping[str, Intervention],
    workloads: Sequence[Workload],
    compared: Compare,
) -> Iterator[list[str]]:
    for workload in workloads:
        for name, runner in baked.items():
            require_outcome(unbaked, runner, interventions[name], workload)
            yield _row(workload, name, compared(run(unbaked, workload), run(runner, workload)))


def _hooked_rows(
    model: PreTrainedModel,
    runners: Mapping[str, Runner],
    interventions: Mapping[str, Intervention],
    workloads: Sequence[Workload],
    compared: Compare,
) -> Iterator[list[str]]:
    for workload in workloads:
        for name, runner in runners.items():
            if name.endswith("refused"):
                continue  # a hook cannot end the forward pass that it is called from
            with _hooks(model, interventions.get(name)):
                yield _row(workload, name, compared(run(runner, workload), _torch_run(model, workload)))


def _row(workload: Workload, name: str, measured: Comparison) -> list[str]:
    return [workload.name, name, f"{measured.baseline:.1f}", f"{measured.variant:.1f}", measured.interval]


def _exported(model: PreTrainedModel, directory: Path) -> Path:
    graph = directory / "model.onnx"
    return graph if graph.is_file() else export(model, directory)


def _torch_run(model: PreTrainedModel, workload: Workload) -> Action:
    import torch
    from transformers import DynamicCache

    shape = (1, model.config.num_key_value_heads, workload.past, model.config.head_dim)
    drawn = tuple((torch.randn(shape), torch.randn(shape)) for _ in range(model.config.num_hidden_layers))
    ids = torch.from_numpy(tokens(workload.new))
    mask = torch.ones((1, workload.past + workload.new), dtype=torch.int64)

    def run() -> None:
        cache = DynamicCache()
        if workload.past:
            for layer, (keys, values) in enumerate(drawn):
                cache.update(keys, values, layer)
        with torch.inference_mode():
            model(input_ids=ids, attention_mask=mask, past_key_values=cache, use_cache=True)

    return run


@contextmanager
def _hooks(model: PreTrainedModel, intervention: Intervention | None) -> Iterator[None]:
    """The intervention as the hooks one would write beside a model: float32, from the constants of the plan."""
    handles = []
    blocks = model.model.layers
    if isinstance(intervention, NeuronAdjust):
        for layer in range(len(intervention.layers)):
            hook = _adjust(intervention, layer)
            handles.append(blocks[intervention.layers[layer].layer].mlp.gate_proj.register_forward_hook(hook))
    elif isinstance(intervention, KeySpaceDetection):
        down = blocks[intervention.layers[0]].mlp.down_proj
        handles.append(down.register_forward_pre_hook(_detect(intervention)))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _adjust(intervention: NeuronAdjust, index: int) -> Callable[[Any, Any, Tensor], Tensor]:
    import torch

    layer = intervention.layers[index]
    neurons = torch.from_numpy(layer.neurons)
    mean_f, deviation_f, mean_r, deviation_r = (
        torch.from_numpy(values).float()
        for values in (layer.forget_mean, layer.forget_deviation, layer.retain_mean, layer.retain_deviation)
    )
    constant = torch.log(deviation_f / deviation_r)

    def hook(_module: object, _inputs: object, output: Tensor) -> Tensor:
        value = output[..., neurons]
        z_f, z_r = (value - mean_f) / deviation_f, (value - mean_r) / deviation_r
        log_odds = 0.5 * (z_r - z_f) * (z_r + z_f) - constant
        shifted = mean_r - deviation_r * z_f
        if intervention.coin == "expected":
            shifted = value + torch.sigmoid(log_odds) * (shifted - value)
        output[..., neurons] = torch.where(log_odds > 0, shifted, value)
        return output

    return hook


def _detect(intervention: KeySpaceDetection) -> Callable[[Any, tuple[Tensor]], None]:
    import torch

    centre, deviation = (torch.from_numpy(values).float() for values in intervention.regions.arrays().values())
    alpha = float(intervention.alpha[0])

    def hook(_module: object, inputs: tuple[Tensor]) -> None:
        margin = ((inputs[0][:, -1] - centre) / deviation).abs().amax(dim=-1)
        if bool((margin <= alpha).any()):
            raise RuntimeError("a query that was to pass is refused")

    return hook


if __name__ == "__main__":
    main()
