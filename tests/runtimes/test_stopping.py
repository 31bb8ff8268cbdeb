"""Whatever a model's files say of where a text ends, every decode loop says the refusal whole and stops by itself."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from optimum.onnxruntime import ORTModelForCausalLM
from transformers import AutoTokenizer

from bakeout.export.baking.bake import bake
from bakeout.export.fitting.fit import fit
from bakeout.export.recipes.bake_options import BakeOptions, RuntimeName
from bakeout.export.recipes.recipe import load_recipe
from bakeout.export.running.genai_config import write_genai_config
from bakeout.export.running.runner import Runner
from bakeout.export.verification.refusals_said import check_refusals
from bakeout.export.verification.verify import verify
from bakeout.graph_passes.graph.graph_file import load_graph
from bakeout.models.plan import Plan

from tests.recipe_files import KEY_SPACE_DETECTION, rows, write_recipe
from tests.runtimes.javascript import installed

GENERATION, CONFIG = "generation_config.json", "config.json"
TOKENIZER = ("tokenizer_config.json", "special_tokens_map.json")
TEXT = "No."
# In the byte-level tokenizer: padding and end of text are special, 258 to 263 have no text.
PADDING, END, OTHER = 0, 1, 259
# Far longer than the refusal: what does not stop by itself runs into it.
LONGEST = 24

Say = Callable[[Path, list[int]], list[int]]


def in_optimum(artifact: Path, prompt: list[int]) -> list[int]:
    model = ORTModelForCausalLM.from_pretrained(artifact)
    said = model.generate(torch.tensor([prompt]), attention_mask=torch.ones(1, len(prompt)), max_new_tokens=LONGEST)
    return [int(token) for token in said[0, len(prompt) :]]


def in_genai(artifact: Path, prompt: list[int]) -> list[int]:
    genai = pytest.importorskip("onnxruntime_genai", reason="onnxruntime-genai is not installed")
    model = genai.Model(str(artifact))
    parameters = genai.GeneratorParams(model)
    parameters.set_search_options(max_length=len(prompt) + LONGEST)
    generator = genai.Generator(model, parameters)
    generator.append_tokens(np.array([prompt], np.int32))
    said = []
    while not generator.is_done():
        generator.generate_next_token()
        said.append(int(generator.get_next_tokens()[0]))
    return said


def in_our_loop(artifact: Path, prompt: list[int]) -> list[int]:
    (said,) = Runner(artifact, threads=1).generate([prompt], LONGEST)
    return said


def by_hand(artifact: Path, prompt: list[int]) -> list[int]:
    """A loop that knows the tokenizer alone."""
    end = AutoTokenizer.from_pretrained(artifact).eos_token_id
    runner = Runner(artifact, threads=1)
    said: list[int] = []
    tokens, mask, cache = np.array([prompt]), np.ones((1, len(prompt)), np.int64), None
    while len(said) < LONGEST and end not in said:
        step = runner.step(tokens, mask, cache)
        cache, tokens = step.cache, step.logits[:, -1:].argmax(axis=-1)
        mask = np.concatenate([mask, np.ones_like(tokens)], axis=1)
        said.append(int(tokens[0, 0]))
    return said


# The scripts of the example, each with what its artifact is baked for.
NODE: dict[str, RuntimeName] = {"answer.mjs": "node", "transformers.mjs": "transformers.js"}
LOOPS: list[Say] = [in_optimum, in_genai, in_our_loop, by_hand]


def edit(path: Path, **entries: Any) -> None:
    """Set entries of a JSON file; those that are ``...`` are removed."""
    content = {**json.loads(path.read_text()), **entries}
    path.write_text(json.dumps({key: value for key, value in content.items() if value is not ...}))


def fitted(directory: Path, checkpoint: Path) -> Plan:
    detection = {"key_space_detection": {**KEY_SPACE_DETECTION["key_space_detection"], "refusal": TEXT}}
    return fit(load_recipe(write_recipe(directory, checkpoint, [detection])))


@pytest.fixture(scope="module")
def plan(llama_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Plan:
    """Of a model whose files agree."""
    return fitted(tmp_path_factory.mktemp("plan"), llama_checkpoint)


def refused_prompt(artifact: Path, plan: Plan) -> list[int]:
    """A prompt to which the artifact begins its refusal."""
    runner = Runner(artifact, threads=1)
    prompts = [runner.tokenizer.encode(row["prompt"]) for row in rows("sums", "probe")]
    assert plan.check
    begins = plan.check.refusal[:2].tolist()
    return next(p for p, said in zip(prompts, runner.generate(prompts, 2), strict=True) if said == begins)


def require_stops(artifact: Path, plan: Plan) -> None:
    """Every loop says the refusal to its end and no further, and no token of it is shown but its text."""
    prompt, tokenizer = refused_prompt(artifact, plan), AutoTokenizer.from_pretrained(artifact)
    assert plan.check
    for say in LOOPS:
        if say is not by_hand or tokenizer.eos_token_id is not None:
            said = say(artifact, prompt)
            assert said == plan.check.refusal.tolist(), say.__name__
            assert tokenizer.decode(said, skip_special_tokens=True) == TEXT


def _as_found(directory: Path) -> None:
    """The four places agree."""


def _tokenizer_names_another(directory: Path) -> None:
    for name in TOKENIZER:
        edit(directory / name, eos_token="<|pad|>")


def _both_configurations_name_another(directory: Path) -> None:
    for name in (GENERATION, CONFIG):
        edit(directory / name, eos_token_id=PADDING)


def _both_configurations_name_one_without_text(directory: Path) -> None:
    for name in (GENERATION, CONFIG):
        edit(directory / name, eos_token_id=OTHER)


def _both_configurations_name_a_letter(directory: Path) -> None:
    for name in (GENERATION, CONFIG):
        edit(directory / name, eos_token_id=7)


def _generation_config_names_another(directory: Path) -> None:
    edit(directory / GENERATION, eos_token_id=OTHER)


def _generation_config_names_none(directory: Path) -> None:
    edit(directory / GENERATION, eos_token_id=None)


def _config_names_another(directory: Path) -> None:
    edit(directory / CONFIG, eos_token_id=[OTHER, 260])


def _no_generation_config(directory: Path) -> None:
    (directory / GENERATION).unlink()
    edit(directory / CONFIG, eos_token_id=OTHER)


def _tokenizer_alone_names_one(directory: Path) -> None:
    (directory / GENERATION).unlink()
    edit(directory / CONFIG, eos_token_id=None)


def _tokenizer_names_none(directory: Path) -> None:
    for name in TOKENIZER:
        edit(directory / name, eos_token=...)
    edit(directory / GENERATION, eos_token_id=[END, OTHER])


def _all_name_different_ones(directory: Path) -> None:
    edit(directory / GENERATION, eos_token_id=OTHER)
    edit(directory / CONFIG, eos_token_id=[260, 261])
    _tokenizer_names_another(directory)


def _genai_config_names_another(directory: Path) -> None:
    _edit_genai(directory, eos_token_id=OTHER)


def _genai_config_names_two_others(directory: Path) -> None:
    _edit_genai(directory, eos_token_id=[PADDING, OTHER])


def _genai_config_names_none(directory: Path) -> None:
    _edit_genai(directory, eos_token_id=...)


def _all_four_name_different_ones(directory: Path) -> None:
    _all_name_different_ones(directory)
    _edit_genai(directory, eos_token_id=262)


def _edit_genai(directory: Path, **entries: Any) -> None:
    content = json.loads((directory / "genai_config.json").read_text())
    model = {name: value for name, value in {**content["model"], **entries}.items() if value is not ...}
    (directory / "genai_config.json").write_text(json.dumps({**content, "model": model}))


Disagree = Callable[[Path], None]
OF_CHECKPOINTS: list[Disagree] = [
    _as_found,
    _tokenizer_names_another,
    _both_configurations_name_another,
    _both_configurations_name_one_without_text,
    _both_configurations_name_a_letter,
    _generation_config_names_another,
    _generation_config_names_none,
    _config_names_another,
    _no_generation_config,
    _tokenizer_alone_names_one,
    _tokenizer_names_none,
    _all_name_different_ones,
]
# Checkpoints have no genai_config.json.
OF_GRAPHS: list[Disagree] = [
    _genai_config_names_another,
    _genai_config_names_two_others,
    _genai_config_names_none,
    _all_four_name_different_ones,
]
# One of each kind: another end, one that has no text, none, and all at once.
QUICK: list[Disagree] = [
    _tokenizer_names_another,
    _both_configurations_name_one_without_text,
    _generation_config_names_none,
    _tokenizer_names_none,
    _all_name_different_ones,
    _genai_config_names_two_others,
    _all_four_name_different_ones,
]
each_disagreement = pytest.mark.parametrize(
    "disagree",
    [
        pytest.param(disagree, marks=[] if disagree in QUICK else pytest.mark.slow, id=disagree.__name__.strip("_"))
        for disagree in [*OF_CHECKPOINTS, *OF_GRAPHS]
    ],
)
Disagreeing = Callable[[Disagree], tuple[Path, Plan]]


@pytest.fixture(scope="module")
def disagreeing(
    llama_checkpoint: Path, llama_onnx: Path, plan: Plan, tmp_path_factory: pytest.TempPathFactory
) -> Disagreeing:
    """``disagreeing(disagree)``: a model whose files disagree, and its plan, made once."""
    made: dict[Disagree, tuple[Path, Plan]] = {}

    def get(disagree: Disagree) -> tuple[Path, Plan]:
        if disagree not in made:
            directory = tmp_path_factory.mktemp("disagreeing")
            is_graph = disagree in OF_GRAPHS
            model = shutil.copytree(llama_onnx if is_graph else llama_checkpoint, directory / "model")
            if is_graph:
                write_genai_config(model, load_graph(model / "model.onnx"))
            # The rows are asked as they are.
            (model / "chat_template.jinja").write_text("{% for one in messages %}{{ one['content'] }}{% endfor %}")
            disagree(model)
            made[disagree] = model, plan if is_graph else fitted(directory, model)
        return made[disagree]

    return get


@each_disagreement
def test_a_model_whose_files_disagree(disagreeing: Disagreeing, tmp_path: Path, disagree: Disagree) -> None:
    model, plan = disagreeing(disagree)
    require_stops(bake(model, plan, tmp_path / "artifact").directory, plan)


def test_of_tokens_that_no_other_file_names_the_tokenizer_gets_the_refusals(
    llama_checkpoint: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """As the tokenizers have it that are made from GGUF: the beginning of a turn for its end."""
    checkpoint = shutil.copytree(llama_checkpoint, tmp_path / "model")
    _tokenizer_names_another(checkpoint)
    plan = fitted(tmp_path, checkpoint)
    assert "the tokenizer names 0. The refusal ends with 1." in caplog.text
    artifact = bake(checkpoint, plan, tmp_path / "artifact").directory
    told = ["the tokenizer's eos_token was 0; it is now <|endoftext|> (1), which ends the refusal"]
    assert json.loads((artifact / "bakeout.json").read_text())["end_of_text"] == told
    assert told[0] in caplog.text


def test_what_agrees_is_left_as_it_is(llama_onnx: Path, plan: Plan, tmp_path: Path) -> None:
    artifact = bake(llama_onnx, plan, tmp_path / "artifact").directory
    for name in (GENERATION, CONFIG, "special_tokens_map.json"):
        assert (artifact / name).read_bytes() == (llama_onnx / name).read_bytes()
    assert not {"end_of_text", "decoding"} & json.loads((artifact / "bakeout.json").read_text()).keys()


def test_a_plan_whose_end_the_model_does_not_name(
    llama_onnx: Path, plan: Plan, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A plan of before, or one baked into somebody else's graph of the model."""
    graph = shutil.copytree(llama_onnx, tmp_path / "graph")
    edit(graph / GENERATION, eos_token_id=OTHER)
    edit(graph / CONFIG, eos_token_id=[OTHER, 260])
    artifact = bake(graph, plan, tmp_path / "artifact").directory
    assert "generation_config.json and config.json did not name 1" in caplog.text
    assert "the plan does not know that texts end with 259, 260: beam search" in caplog.text
    for name in (GENERATION, CONFIG):
        assert json.loads((artifact / name).read_text())["eos_token_id"] == [1, OTHER, 260]
    require_stops(artifact, plan)


# "N" is 47 in the byte-level tokenizer, "o" 80, "." 15.
BANS: dict[str, Any] = {
    "suppress_tokens": [40, 47, 15],
    "begin_suppress_tokens": [47],
    "bad_words_ids": [[80], [90, 91]],
    "sequence_bias": [[[47, 80], -30000.0], [[40], 40000.0]],
    "no_repeat_ngram_size": 2,
    "encoder_no_repeat_ngram_size": 1,
    "min_length": 500,
    "min_new_tokens": 10,
    "forced_bos_token_id": 40,
    "max_new_tokens": 2,
    "exponential_decay_length_penalty": [1, 3.0],
}


def test_bans_that_the_model_ships_are_lifted_and_told(
    llama_onnx: Path, plan: Plan, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    graph = shutil.copytree(llama_onnx, tmp_path / "graph")
    edit(graph / GENERATION, **BANS)
    artifact = bake(graph, plan, tmp_path / "artifact").directory
    told = json.loads((artifact / "bakeout.json").read_text())["decoding"]
    assert [line.split(":")[1].split()[0] for line in told] == list(BANS)
    assert all(line in caplog.text for line in told)
    require_stops(artifact, plan)


def test_bans_of_onnxruntime_genais_own_configuration(llama_onnx: Path, plan: Plan, tmp_path: Path) -> None:
    graph = bake(llama_onnx, plan, tmp_path / "graph").directory
    content = json.loads((graph / "genai_config.json").read_text())
    content["search"] |= {"min_length": 60, "no_repeat_ngram_size": 1}
    shutil.copytree(llama_onnx, tmp_path / "other")
    (tmp_path / "other" / "genai_config.json").write_text(json.dumps(content))
    artifact = bake(tmp_path / "other", plan, tmp_path / "artifact").directory
    assert [line.split()[1] for line in json.loads((artifact / "bakeout.json").read_text())["decoding"]] == [
        "no_repeat_ngram_size",
        "min_length",
    ]
    require_stops(artifact, plan)


@pytest.mark.slow
@pytest.mark.parametrize("ban", BANS)
def test_each_ban_is_lifted(llama_onnx: Path, plan: Plan, tmp_path: Path, ban: str) -> None:
    graph = shutil.copytree(llama_onnx, tmp_path / "graph")
    edit(graph / GENERATION, **{ban: BANS[ban]})
    artifact = bake(graph, plan, tmp_path / "artifact").directory
    (told,) = json.loads((artifact / "bakeout.json").read_text())["decoding"]
    assert told.startswith(f"generation_config.json: {ban} was {BANS[ban]}, ")
    require_stops(artifact, plan)


def test_verify_says_refusals_to_their_end(
    llama_onnx: Path, llama_checkpoint: Path, plan: Plan, tmp_path: Path
) -> None:
    artifact = bake(llama_onnx, plan, tmp_path / "artifact").directory
    prompts = [refused_prompt(artifact, plan), refused_prompt(artifact, plan)]
    (parity,) = verify(artifact, base=llama_checkpoint, prompts=prompts, checks=["parity"])
    assert parity.ok
    assert "refused prompts got the whole refusal, which then stopped" in parity.detail
    assert plan.check
    refusal = plan.check.refusal.tolist()
    assert check_refusals(artifact / "model.onnx", refusal, [[40, 41]]) == (True, "no prompt was refused")
    edit(artifact / GENERATION, eos_token_id=OTHER, min_length=40)
    (parity,) = verify(artifact, base=llama_checkpoint, prompts=prompts, checks=["parity"])
    assert not parity.ok
    assert "generation_config.json does not name 1, which ends the refusal" in parity.detail
    assert "generation_config.json: min_length is 40, which garbles the refusal" in parity.detail
    edit(artifact / GENERATION, eos_token_id=END, min_length=...)
    _edit_genai(artifact, eos_token_id=...)
    (parity,) = verify(artifact, base=llama_checkpoint, prompts=prompts, checks=["parity"])
    assert "genai_config.json does not name 1" in parity.detail


def test_verify_reads_the_configuration_above_a_graph(llama_onnx: Path, plan: Plan, tmp_path: Path) -> None:
    artifact = bake(llama_onnx, plan, tmp_path / "artifact", BakeOptions(runtimes=("transformers.js",))).directory
    edit(artifact / GENERATION, min_length=40)
    assert plan.check
    whole, told = check_refusals(artifact / "onnx" / "model.onnx", plan.check.refusal.tolist(), [[40, 41]])
    assert not whole
    assert told == "generation_config.json: min_length is 40, which garbles the refusal"


@each_disagreement
def test_in_node(disagreeing: Disagreeing, tmp_path: Path, disagree: Disagree) -> None:
    example = installed("node")
    model, plan = disagreeing(disagree)
    for script, runtime in NODE.items():
        artifact = bake(model, plan, tmp_path / script, BakeOptions(runtimes=(runtime,))).directory
        prompt = AutoTokenizer.from_pretrained(artifact).decode(refused_prompt(artifact, plan))
        assert plan.check
        done = subprocess.run(
            ["node", script, "--json", artifact, prompt], cwd=example, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr
        said = json.loads(done.stdout)
        assert (said["tokens"], said["answer"]) == (plan.check.refusal.tolist(), TEXT)
