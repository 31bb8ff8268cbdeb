"""lm-evaluation-harness on any model that a ``Runner`` runs: its tasks, its prompts, its metrics."""

from __future__ import annotations

from collections.abc import Mapping
from difflib import get_close_matches
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bakeout.export.evaluation.rows import TaskRow
from bakeout.export.evaluation.task_files import require_no_code
from bakeout.export.recipes.evaluation import Tasks
from bakeout.models.errors import BakeoutError
from bakeout.models.extras import missing_extra
from bakeout.models.progress import Track, untracked

if TYPE_CHECKING:
    from bakeout.export.running.runner import Runner


def run_tasks(
    runner: Runner, model: str, tasks: Tasks, *, batch_size: int = 32, track: Track = untracked
) -> list[TaskRow]:
    """Run the tasks on one model, through the harness's own model interface, batched.

    Raises ``BakeoutError`` where the harness is not installed, knows no such task, cannot read a task's data, or would
    run code that the model wrote.
    """
    loaded = _loaded(tasks)
    from lm_eval.evaluator import simple_evaluate

    from bakeout.export.evaluation.harness_model import HarnessModel

    results = simple_evaluate(
        model=HarnessModel(runner, batch_size=batch_size, track=track, description=model),
        tasks=loaded,
        task_manager=_manager(tasks.directory, tasks.names),
        num_fewshot=tasks.few_shot,
        limit=tasks.limit,
        apply_chat_template=tasks.chat,
        fewshot_as_multiturn=tasks.chat,
        log_samples=False,
    )
    return [row for name, metrics in results["results"].items() for row in _rows(model, name, metrics)]


def require_tasks(tasks: Tasks) -> None:
    """Raise ``BakeoutError``, before anything is measured, for what ``run_tasks`` would refuse."""
    _loaded(tasks)


def _sandbox_templates() -> None:
    """Let the harness render tasks' templates in Jinja's sandbox: its own environment lets them call anything."""
    from jinja2.sandbox import SandboxedEnvironment
    from lm_eval import utils

    if not isinstance(utils.env, SandboxedEnvironment):
        sandbox = SandboxedEnvironment(loader=utils.env.loader, undefined=utils.env.undefined)
        sandbox.filters = utils.env.filters
        sandbox.keep_trailing_newline = utils.env.keep_trailing_newline
        utils.env = sandbox


@cache
def _manager(directory: Path | None, names: tuple[str, ...]) -> Any:
    """The harness's index of tasks; of those in ``directory`` alone where they are all that is asked for.

    Indexing all of the harness's own takes many seconds.
    """
    from lm_eval.tasks import TaskManager

    if directory is None:
        return TaskManager()
    if not directory.is_dir():
        raise BakeoutError(f"There is no directory {directory}.", "Name the one with the tasks' YAML files.")
    own = TaskManager(include_path=str(directory), include_defaults=False)
    return own if set(names) <= set(own.all_tasks) else TaskManager(include_path=str(directory))


def _loaded(tasks: Tasks) -> list[Any]:
    """The tasks and groups, with their data."""
    try:
        import lm_eval  # noqa: F401
    except ModuleNotFoundError as error:
        raise (missing_extra(error, "A task of lm-evaluation-harness") or error) from None
    if tasks.directory is not None and not tasks.code:
        require_no_code(tasks.directory)
    _sandbox_templates()
    manager, names = _manager(tasks.directory, tasks.names), tasks.names
    for name in names:
        if name not in manager.all_tasks:
            close = get_close_matches(name, manager.all_tasks, n=1)
            raise BakeoutError(
                f"lm-evaluation-harness has no task {name!r}{f'; did you mean {close[0]!r}?' if close else '.'}",
                "See `lm_eval ls tasks`, or name the directory of your own with --task-directory.",
            )
    try:
        loaded = manager.load(list(names))
    # Errors of the data sets' library and the harness for data and YAML files that cannot be read.
    except (OSError, ValueError) as error:
        reason = str(error).strip().splitlines() or [type(error).__name__]
        raise BakeoutError(
            f"The data of {', '.join(names)} cannot be read ({reason[0]}).",
            "Check the network, or the task's YAML file.",
        ) from None
    unsafe = [name for name, task in loaded["tasks"].items() if getattr(task, "UNSAFE_CODE", False)]
    if unsafe:
        raise BakeoutError(
            f"{unsafe[0]} runs the code that a model writes, which this command never does.",
            "Run it with `lm_eval` in a sandbox.",
        )
    grouped = {child for children in loaded["group_map"].values() for child in children}
    return [task for kind in ("groups", "tasks") for name, task in loaded[kind].items() if name not in grouped]


def _rows(model: str, task: str, metrics: Mapping[str, Any]) -> list[TaskRow]:
    """The harness's ``{"acc,none": 0.5, "acc_stderr,none": 0.1, …}`` as rows."""
    rows = []
    for key, value in metrics.items():
        metric, comma, how = key.partition(",")
        if comma and not metric.endswith("_stderr"):
            error = metrics.get(f"{metric}_stderr,{how}")
            known = isinstance(error, (int, float))
            rows.append(TaskRow(model, task, metric, how, float(value), float(error) if known and error else None))
    return rows
