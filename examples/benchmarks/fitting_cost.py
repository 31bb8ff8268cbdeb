"""What does Key Space Detection with everything chosen automatically cost, beside the bare forward passes?

    python examples/benchmarks/fitting_cost.py MODEL --forget FORGET.jsonl --retain A.jsonl --retain B.jsonl

The bare passes are those of the fit over again: the same batches, to the same depth, of a model that ends there. A
second fit, with another epsilon and number of regions, finds everything probed in the cache; what it runs is the
canary's search. Processor seconds say more than those on the wall where a machine does other things too.
"""

from __future__ import annotations

import json
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from comparison import print_machine, print_table
from own_process import in_a_process_of_its_own

if TYPE_CHECKING:
    from collections.abc import Iterable

    import torch

AUTOMATIC = dict.fromkeys(("region", "layers", "cubes", "floor", "epsilon"), "auto")
SECOND = {"epsilon": 0.05, "cubes": 2}


@dataclass
class Passes:
    """What probing's forward passes ran on, and to which depth, and how many the fit ran, and the canary of these."""

    batches: list[tuple[torch.Tensor, torch.Tensor, int]] = field(default_factory=list)
    run: int = 0
    before_canary: int = 0


@click.command()
@click.argument("model", type=click.Path(exists=True, path_type=Path))
@click.option("--forget", type=click.Path(exists=True, path_type=Path), required=True)
@click.option("--retain", type=click.Path(exists=True, path_type=Path), multiple=True, required=True)
@click.option("--directory", type=click.Path(path_type=Path), help="Where the cache and results stay.")
def main(model: Path, forget: Path, retain: tuple[Path, ...], directory: Path | None) -> None:
    """Fit twice, each time in a process of its own, and print what that took."""
    data = {"forget": str(forget.resolve())} | {path.stem: str(path.resolve()) for path in retain}
    print_machine("torch", "transformers")
    with tempfile.TemporaryDirectory() as temporary:
        work = directory or Path(temporary)
        work.mkdir(parents=True, exist_ok=True)
        rows: list[list[str]] = []
        for name, options in (("first", AUTOMATIC), ("second", AUTOMATIC | SECOND)):
            recipe = {
                "model": str(model.resolve()),
                "data": data,
                "interventions": [{"key_space_detection": {"forget": "forget"} | options}],
            }
            (work / f"{name}.yaml").write_text(json.dumps(recipe), encoding="utf-8")
            _, peak = in_a_process_of_its_own(_fit, work, name, name == "first")
            rows += _told(name, json.loads((work / f"{name}.json").read_text()), peak, model)
    print_table(["", "wall, s", "processor, s", "forward passes", "tokens, padding too", "peak resident, MiB"], rows)


def _told(name: str, measured: dict[str, Any], peak: int, model: Path) -> Iterable[list[str]]:
    weights = sum(path.stat().st_size for path in model.glob("*.safetensors"))
    memory = f"{peak / 2**20:.0f} (the weights and {(peak - weights) / 2**20:.0f})"
    for what, seconds in measured["seconds"].items():
        passes, tokens = measured["passes"].get(what, ("", ""))
        wall, processor = (f"{value:.1f}" for value in seconds)
        yield [f"{name} fit: {what}", wall, processor, str(passes), str(tokens), memory if what == "all" else ""]


def _fit(work: Path, name: str, with_bare: bool) -> None:
    """Fit, count the passes, and write what it took; then, if asked, run them bare."""
    from bakeout.export.fitting.fit import fit
    from bakeout.export.recipes.recipe import load_recipe
    from bakeout.models.checkpoint.checkpoint_files import load_model
    from bakeout.models.reference import canary

    module: Any = canary
    recipe, passes = load_recipe(work / f"{name}.yaml"), Passes()
    _record(passes)
    search, began_search = canary.synthesise_canary, [(0.0, 0.0)]

    def searched(*arguments: Any, **options: Any) -> Any:
        began_search[0], passes.before_canary = _clocks(), passes.run
        return search(*arguments, **options)

    module.synthesise_canary = searched
    began = _clocks()
    fit(recipe, cache=work / "cache")
    ended = _clocks()
    seconds = {"all": _between(began, ended), "the canary": _between(began_search[0], ended)}
    tokens = sum(ids.numel() for ids, _, _ in passes.batches)
    counts: dict[str, Any] = {
        "all": (passes.run, ""),
        "the canary": (passes.run - passes.before_canary, ""),
        "the same passes, bare": (len(passes.batches), tokens),
    }
    if with_bare:
        model = load_model(Path(recipe.model), recipe.placement)
        began = _clocks()
        _run_bare(model, passes)
        seconds["the same passes, bare"] = _between(began, _clocks())
    (work / f"{name}.json").write_text(json.dumps({"seconds": seconds, "passes": counts}))


def _record(passes: Passes) -> None:
    from torch.nn.modules.module import register_module_forward_pre_hook
    from transformers import PreTrainedModel

    from bakeout.models.network import probing
    from bakeout.models.network.families import feed_forward_layers

    forward = probing._Reading.forward

    def recorded(self: Any, **inputs: torch.Tensor) -> None:
        if "attention_mask" in inputs:
            read = {*self._inputs, *self._outputs}
            layers = [layer.layer for layer in feed_forward_layers(self._model) if {layer.gate, layer.down} & read]
            passes.batches.append((inputs["input_ids"], inputs["attention_mask"], max(layers)))
        forward(self, **inputs)

    def count(module: torch.nn.Module, _arguments: Any) -> None:
        passes.run += isinstance(module, PreTrainedModel) and module.base_model is module

    register_module_forward_pre_hook(count)
    probing._Reading.forward = recorded  # type: ignore[method-assign]


def _run_bare(model: Any, passes: Passes) -> None:
    import torch

    every = model.base_model.layers
    with torch.inference_mode():
        for ids, mask, deepest in passes.batches:
            model.base_model.layers = every[: deepest + 1]
            model.base_model(input_ids=ids, attention_mask=mask, use_cache=False)


def _clocks() -> tuple[float, float]:
    return time.perf_counter(), time.process_time()


def _between(began: tuple[float, float], ended: tuple[float, float]) -> tuple[float, float]:
    return ended[0] - began[0], ended[1] - began[1]


if __name__ == "__main__":
    main()
