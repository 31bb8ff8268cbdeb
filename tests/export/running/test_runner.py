import os
import platform
import shutil
import subprocess
import sys
import weakref
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from bakeout.export.running.runner import Runner, Step
from bakeout.export.running.sampling import Sampling
from bakeout.models.checkpoint.checkpoint_files import load_model
from bakeout.models.errors import BakeoutError

from tests.tiny_models import byte_tokenizer

PROMPTS = [
    [int(token) for token in np.random.default_rng(length).integers(2, 250, length)] for length in (3, 9, 4, 9, 1, 6)
]
NEW = 7


@pytest.fixture(scope="module")
def runner(llama_onnx: Path) -> Runner:
    return Runner(llama_onnx)


def _torch_greedy(checkpoint: Path, prompt: list[int]) -> list[int]:
    model: Any = load_model(checkpoint)
    ids: torch.Tensor = model.generate(
        torch.tensor([prompt]),
        attention_mask=torch.ones(1, len(prompt), dtype=torch.long),
        max_new_tokens=NEW,
        do_sample=False,
    )
    return [int(token) for token in ids[0, len(prompt) :]]


def test_says_what_pytorch_says(runner: Runner, llama_checkpoint: Path) -> None:
    assert runner.generate(PROMPTS, NEW) == [_torch_greedy(llama_checkpoint, prompt) for prompt in PROMPTS]


@pytest.mark.parametrize("batch_size", [1, 2, 3])
def test_the_batch_does_not_matter(runner: Runner, batch_size: int) -> None:
    assert runner.generate(PROMPTS, NEW, batch_size=batch_size) == runner.generate(PROMPTS, NEW)


def test_logits_are_pytorchs(runner: Runner, llama_checkpoint: Path) -> None:
    model = load_model(llama_checkpoint)
    for prompt, logits in zip(PROMPTS, runner.logits(PROMPTS), strict=True):
        with torch.no_grad():
            expected = model(torch.tensor([prompt])).logits[0].numpy()
        np.testing.assert_allclose(logits, expected, atol=1e-4)


def test_mapped_weights_compute_the_same(runner: Runner, llama_onnx: Path) -> None:
    for logits, mapped in zip(runner.logits(PROMPTS), Runner(llama_onnx, mapped=True).logits(PROMPTS), strict=True):
        np.testing.assert_allclose(mapped, logits, atol=1e-5)


def test_the_logits_behind_each_token_choose_it(runner: Runner) -> None:
    for (tokens, logits), alone in zip(
        runner.generate_with_logits(PROMPTS, NEW), runner.generate(PROMPTS, NEW), strict=True
    ):
        assert tokens == alone == logits.argmax(axis=-1).tolist()


def test_the_logits_of_whole_prompts_are_not_kept(llama_onnx: Path) -> None:
    batches: list[weakref.ref[Any]] = []

    class Watched(Runner):
        def step(self, *arguments: Any) -> Step:
            step = super().step(*arguments)
            memory = step.logits
            while isinstance(memory.base, np.ndarray):
                memory = memory.base
            batches.append(weakref.ref(memory))
            assert sum(batch() is not None for batch in batches) <= 2
            return step

    Watched(llama_onnx).generate_with_logits([[5, 6, 7]] * 8, 1, batch_size=1)
    assert len(batches) == 8


def test_stops_at_any_token_that_ends_a_text(llama_onnx: Path, runner: Runner) -> None:
    (said,) = runner.generate([PROMPTS[1]], NEW)
    stopping = Runner(llama_onnx)
    stopping.end_tokens = frozenset({said[2], 1})
    length = said.index(said[2]) + 1
    assert stopping.generate([PROMPTS[1]], NEW) == [said[:length]]
    assert list(stopping.stream(PROMPTS[1], NEW)) == said[: length - 1]
    # A neighbour in the batch that goes on is not stopped with it.
    assert stopping.generate([PROMPTS[3], PROMPTS[1]], NEW)[1] == said[:length]


def test_sampling_depends_on_the_seed_and_not_on_the_batch(runner: Runner) -> None:
    hot = Sampling(temperature=3.0, seed=5)
    said = runner.generate(PROMPTS, NEW, sampling=hot)
    assert said == runner.generate(PROMPTS, NEW, sampling=hot, batch_size=1)
    assert said != runner.generate(PROMPTS, NEW, sampling=Sampling(temperature=3.0, seed=6))
    assert said != runner.generate(PROMPTS, NEW)


def test_equal_prompts_can_be_read_once(runner: Runner) -> None:
    prompts = [PROMPTS[1], PROMPTS[3]] * 2
    hot = Sampling(temperature=3.0, seed=5)
    for read_once in (False, True):
        drawn = dict(runner.each_answer(prompts, NEW, sampling=hot, read_once=read_once))
        assert [drawn[row] for row in range(4)] == runner.generate(prompts, NEW, sampling=hot)
    assert drawn[0] != drawn[2]


def test_a_kept_cache_goes_on_where_it_was(runner: Runner) -> None:
    prompt = np.array([PROMPTS[1]])
    whole = runner.step(prompt, np.ones_like(prompt)).logits
    first = runner.step(prompt[:, :4], np.ones((1, 4), dtype=np.int64))
    second = runner.step(prompt[:, 4:], np.ones_like(prompt), first.cache)
    np.testing.assert_allclose(np.concatenate([first.logits, second.logits], axis=1), whole, atol=1e-4)


def _counting_positions_itself(path: Path) -> bytes:
    """The graph without its input ``position_ids``: it counts all tokens, padding too."""
    model = ir.load(path)
    graph = model.graph
    inputs = {value.name: value for value in graph.inputs}
    tape = ir.tape.Tape()
    zero, one = (tape.initializer(ir.tensor(np.array(number), name=f"number_{number}")) for number in (0, 1))
    new = tape.op("Gather", [tape.op("Shape", [inputs["input_ids"]]), one])
    total = tape.op("Gather", [tape.op("Shape", [inputs["attention_mask"]]), one])
    counted = tape.op("Range", [tape.op("Sub", [total, new]), total, one])
    positions = tape.op("Expand", [counted, tape.op("Shape", [inputs["input_ids"]])])
    ir.convenience.replace_all_uses_with(inputs["position_ids"], positions)
    graph.inputs.remove(inputs["position_ids"])
    for value in (zero, one):
        graph.register_initializer(value)
    graph.insert_before(graph[0], tape.nodes)
    return bytes(ir.serde.serialize_model(model).SerializeToString())


def test_without_position_ids_only_prompts_of_one_length_share_a_batch(llama_onnx: Path, runner: Runner) -> None:
    counting = Runner(llama_onnx, graph=_counting_positions_itself(runner.path))
    assert "position_ids" not in {value.name for value in counting.session.get_inputs()}
    assert counting.generate(PROMPTS, NEW) == runner.generate(PROMPTS, NEW)
    for mine, reference in zip(counting.logits(PROMPTS), runner.logits(PROMPTS), strict=True):
        np.testing.assert_allclose(mine, reference, atol=1e-4)


def test_runs_graphs_without_a_cache(llama_checkpoint: Path, llama_onnx: Path, tmp_path: Path) -> None:
    from optimum.exporters.onnx import main_export

    main_export(str(llama_checkpoint), output=tmp_path, task="text-generation", do_validation=False)
    without = Runner(tmp_path)
    assert not without.has_cache
    assert without.generate(PROMPTS, NEW) == Runner(llama_onnx).generate(PROMPTS, NEW)
    with pytest.raises(BakeoutError, match="in pieces"):
        without.generate(PROMPTS, NEW, piece=2)


def test_runs_half_precision(llama_checkpoint: Path, runner: Runner, tmp_path: Path) -> None:
    from bakeout.export.exporting.onnx_export import export_checkpoint

    half = Runner(export_checkpoint(llama_checkpoint, tmp_path, "fp16"))
    assert {value.type for value in half.session.get_inputs()} == {"tensor(int64)", "tensor(float16)"}
    for mine, reference in zip(half.logits(PROMPTS), runner.logits(PROMPTS), strict=True):
        assert mine.dtype == np.float32
        np.testing.assert_allclose(mine, reference, atol=0.1)


@pytest.mark.skipif(
    not Path("/proc/self/smaps_rollup").exists() or platform.machine() != "x86_64",
    reason="Linux alone tells what is mapped, and other processors may multiply float16",
)
def test_mapped_weights_in_half_precision_are_not_widened_beforehand(tmp_path: Path) -> None:
    from bakeout.export.exporting.onnx_export import export_checkpoint

    config = LlamaConfig(vocab_size=512, hidden_size=768, intermediate_size=3072, num_hidden_layers=6)
    LlamaForCausalLM(config).half().save_pretrained(tmp_path / "model")
    byte_tokenizer().save_pretrained(tmp_path / "model")
    (tmp_path / "graph").mkdir()
    graph = export_checkpoint(tmp_path / "model", tmp_path / "graph", "fp16")
    size = (tmp_path / "graph" / "model.onnx.data").stat().st_size
    # In a process of its own, which has no freed memory to use again.
    code = (
        "import sys; from bakeout.export.running.runner import Runner\n"
        "def private():\n"
        "    lines = open('/proc/self/smaps_rollup').read().splitlines()\n"
        "    return 1024 * int(next(line for line in lines if line.startswith('Anonymous:')).split()[1])\n"
        "before = private(); runner = Runner(sys.argv[1], mapped=sys.argv[2] == 'mapped'); print(private() - before)"
    )
    widened = {
        how: int(
            subprocess.run(
                [sys.executable, "-c", code, graph, how],
                # A GPU multiplies float16.
                env={**os.environ, "CUDA_VISIBLE_DEVICES": ""},
                capture_output=True,
                check=True,
            ).stdout
        )
        for how in ("mapped", "read")
    }
    # As float32 they take twice their size.
    assert widened["mapped"] < 0.5 * size and widened["read"] > 1.5 * size


def test_says_which_provider_runs(runner: Runner) -> None:
    assert runner.provider in {"CPUExecutionProvider", "CUDAExecutionProvider"}
    assert runner.provider == runner.session.get_providers()[0]


def test_needs_neither_torch_nor_transformers(llama_onnx: Path) -> None:
    code = (
        "import sys; from bakeout.export.running.runner import Runner; "
        f"Runner({str(llama_onnx)!r}).generate([[3, 4]], 2); "
        "sys.exit('torch' in sys.modules or 'transformers' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_runs_an_edited_copy_beside_the_data(llama_onnx: Path, runner: Runner) -> None:
    content = runner.path.read_bytes()
    assert Runner(llama_onnx, graph=content).generate(PROMPTS, NEW) == runner.generate(PROMPTS, NEW)


def _without_an_end_of_text(directory: Path) -> None:
    for path in directory.glob("*.json"):
        path.unlink()


def _truncated(directory: Path) -> None:
    graph = directory / "model.onnx"
    graph.write_bytes(graph.read_bytes()[:-500])


def _two_graphs(directory: Path) -> None:
    (directory / "model.onnx").rename(directory / "one.onnx")
    shutil.copy(directory / "one.onnx", directory / "two.onnx")


def _broken_configuration(directory: Path) -> None:
    (directory / "generation_config.json").write_text("{")


@pytest.mark.parametrize(
    "damage", [_without_an_end_of_text, _truncated, _two_graphs, _broken_configuration, shutil.rmtree]
)
def test_what_cannot_run_is_refused(llama_onnx: Path, tmp_path: Path, damage: Callable[[Path], None]) -> None:
    directory = shutil.copytree(llama_onnx, tmp_path / "model")
    damage(directory)
    with pytest.raises(BakeoutError):
        Runner(directory)


def test_a_node_that_fails_while_running_is_told_in_one_line(llama_onnx: Path, tmp_path: Path) -> None:
    directory = shutil.copytree(llama_onnx, tmp_path / "model")
    model = ir.load(directory / "model.onnx")
    (logits,) = (output for output in model.graph.outputs if output.name == "logits")
    assert logits.shape is not None
    # One token more than the two that are asked, which shows while running alone.
    three_tokens = ir.tensor(np.array([1, 3, logits.shape[-1]]), name="three_tokens")
    shape = ir.Value(name="three_tokens", const_value=three_tokens)
    model.graph.register_initializer(shape)
    reshape = ir.node("Reshape", [logits, shape])
    logits.name, reshape.outputs[0].name = "logits_as_computed", "logits"
    reshape.outputs[0].type, reshape.outputs[0].shape = logits.type, logits.shape
    model.graph.append(reshape)
    model.graph.outputs[model.graph.outputs.index(logits)] = reshape.outputs[0]
    ir.save(model, directory / "model.onnx")
    broken = Runner(directory)
    with pytest.raises(BakeoutError, match=r"cannot be run"):
        broken.generate([[5, 6]], 2)


def test_an_empty_prompt_is_refused(runner: Runner) -> None:
    with pytest.raises(BakeoutError):
        runner.generate([[3], []], NEW)


def test_a_stop_ends_each_text_by_itself(runner: Runner) -> None:
    prompts = [[40, 41, 42], [50, 51], [60, 61, 62, 63]]
    whole = runner.generate(prompts, 8)
    asked = []

    def stop(said: Sequence[int]) -> bool:
        asked.append(len(said))
        return list(said) in (whole[0][:3], whole[1][:5])

    assert runner.generate(prompts, 8, stop=stop) == [whole[0][:3], whole[1][:5], whole[2]]
    # A text that has ended is not asked about again.
    assert len(asked) == 3 + 5 + 8


@pytest.mark.parametrize("piece", [1, 3])
def test_prompts_fed_in_pieces_are_answered_alike(runner: Runner, piece: int) -> None:
    assert runner.generate(PROMPTS, NEW, piece=piece) == runner.generate(PROMPTS, NEW)
