"""Commands that write, with what they read: tiny models, made once."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from bakeout.models.checkpoint.checkpoint_files import load_model, weights_digest
from bakeout.models.plan.plan_file import save_plan
from bakeout.models.skills import checkpoint_directory
from bakeout.models.skills.generator import examples, write_jsonl

from tests.gguf_files import write_gguf
from tests.hostile.kills.processes import Done, Moment, run_in_fork
from tests.recipe_files import NEURON_ADJUST, write_recipe
from tests.tiny_models import tiny_checkpoint
from tests.weight_plans import low_rank_update, plan_of

_TUNED = {"neuron_adjust": {"forget": "sums", "ratio": "auto", "coin": "threshold"}}
# One layer fewer than elsewhere: what is killed here is not the arithmetic.
_LAYERS = 2


@dataclass(frozen=True)
class Command:
    """``arguments`` after `bakeout`, run in a directory of its own; ``outputs``: what it writes there.

    ``resumed``: what a killed run leaves for the next one; ``beside``: what has to lie in its directory; ``in_place``:
    it changes some of that, and so runs again however it ended; ``ranks``: as how many processes it runs.
    """

    arguments: tuple[str, ...]
    outputs: tuple[str, ...]
    resumed: tuple[str, ...] = ()
    beside: Path | None = None
    in_place: bool = False
    ranks: int = 1

    def prepare(self, home: Path) -> None:
        """Copy what has to lie there into the directory ``home``."""
        if self.beside is not None:
            shutil.copytree(self.beside, home, dirs_exist_ok=True)

    def run(self, home: Path, moment: Moment | None = None, prepare: Callable[[], None] = lambda: None) -> Done:
        """Run it in the directory ``home``, as ``run_in_fork``."""
        return run_in_fork(self.arguments, home, moment, prepare, self.ranks)


def commands(directory: Path) -> Mapping[str, Command]:
    """Make what the commands read in ``directory``, and name them."""
    checkpoint = tiny_checkpoint("llama", directory / "checkpoint", layers=_LAYERS)
    recipe = write_recipe(directory / "recipe", checkpoint, [NEURON_ADJUST])
    tuned = write_recipe(directory / "tuned", checkpoint, [_TUNED])
    weights = directory / "weights.safetensors"
    model = load_model(checkpoint)
    save_plan(plan_of(model, weights_digest(checkpoint), low_rank_update(model, layers=[0, 1])), weights)
    plan, artifact = directory / "plan.safetensors", directory / "artifact"
    for arguments in (["fit", str(recipe), "-o", str(plan)], ["bake", str(checkpoint), str(plan), "-o", str(artifact)]):
        done = run_in_fork(arguments, directory)
        assert done.status == 0, done.told
    # The demo's recipe names layers of a model with as many.
    weights_of_chat = write_gguf(directory / "tiny.gguf", layers=12, context=8192)
    data = str(directory / "recipe" / "data" / "sums.test.jsonl")
    asked = [
        part
        for option, name in (("--forget", "sums"), ("--retain", "names"))
        for part in (option, _one_row(directory / "recipe" / "data", name))
    ]
    short = ("--max-new-tokens", "4")
    finished = directory / "finished"
    shutil.copytree(artifact, finished / "new" / "artifact")
    (finished / "salt").write_bytes(b"s" * 32)
    key = _key(directory / "signing.key")
    graph = str(_graph(artifact, directory))
    attacked = ("--data", data, "--prompts", "4", "--attack", "none", "--attack", "chunked")
    return {
        "fit": Command(("fit", str(recipe), "-o", "new/plan"), ("new/plan",)),
        "fit as two processes": Command(("fit", str(recipe), "-o", "new/plan"), ("new/plan",), ranks=2),
        "build": Command(("build", str(recipe), "-o", "new/artifact"), ("new/artifact",)),
        "export": Command(("bake", str(checkpoint), str(plan), "-o", "new/artifact"), ("new/artifact",)),
        "bake a graph": Command(("bake", graph, str(plan), "-o", "new/artifact"), ("new/artifact",)),
        "bake a checkpoint": Command(
            ("bake", str(checkpoint), str(weights), "-o", "new/artifact", "--to", "safetensors"), ("new/artifact",)
        ),
        "tune": Command(
            ("tune", str(tuned), "-o", "new/r.yaml", "--trials", "3", "--prompts", "4", "--figures", "new/r.json"),
            ("new/r.yaml", "new/r.json"),
            ("new/r.tuning",),
        ),
        "evaluate": Command(("evaluate", str(artifact), "--data", data, "--csv", "new/table.csv"), ("new/table.csv",)),
        "attack": Command(("attack", str(artifact), *attacked, "--figures", "new/attacks.json"), ("new/attacks.json",)),
        "chat demo": Command(
            ("demo", "--model", "smollm2", "--weights", str(weights_of_chat), "-o", "new/demo"), ("new/demo",)
        ),
        "certify": Command(
            ("certify", "new/artifact", "--base", graph, *asked, "--quick", *short, "--journal", "new/journal"),
            (),
            ("new/journal",),
            beside=finished,
            in_place=True,
        ),
        "record": Command(
            ("record", "new/artifact", "--request", data, "--salt", "salt"), (), beside=finished, in_place=True
        ),
        "sign": Command(("sign", "new/artifact", "--key", key), (), beside=finished, in_place=True),
        "bom": Command(("bom", str(artifact), "-o", "new/bom.json"), ("new/bom.json",)),
        "report": Command(("report", str(artifact), "-o", "new/report.html"), ("new/report.html",)),
        "reveal and release": Command(
            ("fit", _release(directory / "release").name, "-o", "new/plan"),
            ("new/plan",),
            ("rounds",),
            beside=directory / "release",
        ),
    }


def _one_row(directory: Path, name: str) -> str:
    """A file of one row, since a certificate asks each of them many times."""
    path = directory / f"{name}.one.jsonl"
    path.write_text((directory / f"{name}.test.jsonl").read_text(encoding="utf-8").partition("\n")[0] + "\n", "utf-8")
    return str(path)


def _key(path: Path) -> str:
    """A private key, in PEM."""
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    pem, form = serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8
    key = ec.generate_private_key(ec.SECP256R1())
    path.write_bytes(key.private_bytes(pem, form, serialization.NoEncryption()))
    return str(path)


def _graph(artifact: Path, directory: Path) -> Path:
    """An ONNX directory without a plan: the base model that the artifact was made of."""
    from bakeout.export.exporting.onnx_export import export_checkpoint

    graph = directory / "graph"
    graph.mkdir()
    export_checkpoint(directory / "checkpoint", graph)
    return graph


def _release(directory: Path) -> Path:
    """A recipe of two quick rounds of Reveal-and-Release on the bundled model."""
    options = {
        "instructions": ["Ask me about code:", "Write a strings question:"],
        "retain": ["math", "german"],
        "directory": "rounds",
        "reveal": {"pulls": 1, "samples": 10, "question_tokens": 20, "answer_tokens": 8},
        "release": {"rank": 2, "steps": 2, "batch_size": 4},
        "rounds": 2,
        "target": 0.0,
        "utility": 0.0,
    }
    data = {}
    for skill in ("math", "german"):
        data[skill] = {"probe": f"data/{skill}.jsonl"}
        (directory / "data").mkdir(parents=True, exist_ok=True)
        write_jsonl(examples(skill, "probing", 24), directory / "data" / f"{skill}.jsonl")
    return write_recipe(directory, checkpoint_directory(), [{"reveal_and_release": options}], data=data)
