"""Every Python, shell, YAML, TOML and JSON block of the documentation runs, or is read, as it stands on the page.

A page's blocks run in order in a directory of their own, in which lie what the guide's index says: ``workplace``. Names
of models on the hub, and of tasks whose data are there, are replaced by local ones; the commands that measure for long
get options that make them short.
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner

from bakeout.export.cli.main import main
from bakeout.export.recipes.recipe import load_recipe
from bakeout.models.data.rows import to_record
from bakeout.models.data.tokenizers.tokenization import load_tokenizer
from bakeout.models.skills import checkpoint_directory

from tests.documentation.blocks import Block, Command, blocks, commands
from tests.documentation.workplace import make_workplace

ROOT = Path(__file__).parents[2]
GUIDE = ROOT / "examples" / "guide"
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted(GUIDE.glob("*.md"))]
# Blocks that show something else than code that runs.
SHOWN = {"mermaid"}
# The reasons that pages give for blocks that are not run.
NOT_RUN = ["it measures for minutes"]
# Pages whose commands are tested elsewhere, and take longest here.
SLOW = {GUIDE / "measuring.md", GUIDE / "choosing.md"}
LOCAL = {
    "meta-llama/Llama-3.2-1B-Instruct": "model",
    "gsm8k,mmlu": "questions",
}
SHORTENED = {
    "tune": ["--trials", "1", "--prompts", "8"],
    "attack": ["--prompts", "8"],
    "assumptions": ["--prompts", "20", "--length", "64"],
}


@pytest.fixture(scope="session")
def workplace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the pages use by name, made once."""
    directory = tmp_path_factory.mktemp("documentation")
    make_workplace(directory)
    return directory


@pytest.fixture
def directory(workplace: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A page's own directory, which is the working directory."""
    directory = tmp_path / "page"
    shutil.copytree(workplace, directory)
    monkeypatch.chdir(directory)
    return directory


@pytest.mark.parametrize(
    "page",
    [
        pytest.param(page, marks=pytest.mark.slow if page in SLOW else [], id=str(page.relative_to(ROOT)))
        for page in PAGES
    ],
)
def test_the_blocks_of_a_page_run(page: Path, request: pytest.FixtureRequest) -> None:
    runnable = [block for block in blocks(page.read_text(encoding="utf-8")) if block.language not in SHOWN]
    if page == ROOT / "README.md":
        assert {block.language for block in runnable} == {"console", "python", "yaml", "json"}
    if not runnable:
        return
    directory: Path = request.getfixturevalue("directory")
    if page == ROOT / "README.md":
        # These are what its blocks write.
        (directory / "recipe.yaml").unlink()
        shutil.rmtree(directory / "unlearned")
    run = Session(page)
    for block in runnable:
        if block.reason is None:
            run(block)


@pytest.mark.parametrize("form", ["onnx", "checkpoint"])
def test_the_block_of_a_model_card_runs(form: str, directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In the artifact's directory, as people who download one run it."""
    if form == "checkpoint":
        pruning = "  - selective_pruning: {forget: math, ratio: 0.1}\nexport: {to: safetensors}\n"
        text = (directory / "recipe.yaml").read_text(encoding="utf-8")
        (directory / "recipe.yaml").write_text(text.partition("  - neuron_adjust")[0] + pruning, encoding="utf-8")
    _bakeout(["build", "recipe.yaml", "-o", "built"])
    monkeypatch.chdir(directory / "built")
    card = directory / "built" / "README.md"
    (block,) = blocks(card.read_text(encoding="utf-8"))
    assert block.language == "python"
    Session(card)(block)


def test_the_blocks_that_are_not_run_are_few_and_say_why() -> None:
    reasons = [block.reason for page in PAGES for block in blocks(page.read_text(encoding="utf-8")) if block.reason]
    assert reasons == NOT_RUN


class Session:
    """The blocks of one page, run one after the other: Python in one namespace, all in the working directory."""

    def __init__(self, page: Path) -> None:
        self.page = page
        self._names: dict[str, object] = {"__name__": "page"}
        self._runs: dict[str, Callable[[Block], None]] = {
            "python": self._python,
            "console": self._console,
            "yaml": self._yaml,
            "toml": self._toml,
            "json": self._json,
        }

    def __call__(self, block: Block) -> None:
        """Run a block, or find it in the file that it is quoted from. A language that is not known is an error."""
        if block.file is None:
            self._runs[block.language](block)
        else:
            assert block.code in (ROOT / block.file).read_text(encoding="utf-8"), f"{block.file} reads otherwise"

    def _python(self, block: Block) -> None:
        # Errors show the line of the page.
        code = compile("\n" * (block.line - 1) + _local(block.code), str(self.page), "exec", dont_inherit=True)
        exec(code, self._names)

    def _console(self, block: Block) -> None:
        shown = list(commands(block.code))
        assert shown, f"{self.page}, line {block.line}: no command"
        for command in shown:
            _run(command)

    def _yaml(self, block: Block) -> None:
        """A recipe, whose first line is a comment that begins with the name of its file."""
        name = re.match(r"# ([\w.-]+\.yaml)\b", block.code)
        assert name, f"{self.page}, line {block.line}: the first line names no file"
        Path(name[1]).write_text(_local(block.code), encoding="utf-8")
        assert load_recipe(name[1]).interventions

    def _toml(self, block: Block) -> None:
        assert tomllib.loads(block.code)

    def _json(self, block: Block) -> None:
        """Rows of data."""
        tokenizer = load_tokenizer(checkpoint_directory())
        for line in block.code.splitlines():
            assert to_record(json.loads(line), tokenizer, str(self.page)).response_ids


def _run(command: Command) -> None:
    program, *arguments = (_local(word) for word in command.words)
    if program == "make":
        makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
        assert all(re.search(rf"^{target}:", makefile, re.M) for target in arguments)
    elif program == "pip":
        project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
        what = re.fullmatch(r"install \.(?:\[([\w,]+)\])?", " ".join(arguments))
        assert what
        assert set((what[1] or "fit").split(",")) <= project["optional-dependencies"].keys()
    elif program == "python":
        ran = subprocess.run([sys.executable, *arguments], capture_output=True, text=True)
        assert ran.returncode == 0, ran.stdout + ran.stderr
    else:
        assert program.removeprefix(".venv/bin/") == "bakeout", program
        printed = _bakeout(arguments)
        assert all(line in printed for line in command.output)


def _bakeout(arguments: list[str]) -> str:
    """What a command prints; ``> FILE`` at its end writes that to a file."""
    file = None
    if arguments[-2:-1] == [">"]:
        *arguments, _, file = arguments
    if "--tasks" in arguments:
        arguments = [*arguments, "--task-directory", "tasks"]
    result = CliRunner().invoke(main, [*arguments, *SHORTENED.get(arguments[0], [])])
    assert result.exit_code == 0, f"{' '.join(arguments)}\n{result.output}"
    if file is not None:
        Path(file).write_text(result.stdout, encoding="utf-8")
    return result.stdout


def _local(text: str) -> str:
    """The text with local models and tasks in place of those of the hub."""
    for name, own in LOCAL.items():
        text = text.replace(name, own)
    return text
