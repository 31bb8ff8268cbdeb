"""The two models that a certificate compares, in each precision that can be made.

The graphs of one precision lie on the disk at a time, and one runner is open.
"""

from __future__ import annotations

import shutil
from contextlib import ExitStack
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from bakeout.export.artifacts.file_names import ADAPTER, GRAPH, PLAN
from bakeout.export.artifacts.manifest import adapter_of, read_manifest
from bakeout.export.artifacts.model_source import find_graph, local_form, model_source
from bakeout.export.artifacts.onnx_directory import companion_files
from bakeout.export.artifacts.onnx_layout import graphs_of, home_of
from bakeout.export.baking.bake import bake
from bakeout.export.baking.quantise import quantise
from bakeout.export.certificate.protocol import Precision
from bakeout.export.evaluation.opening import as_onnx
from bakeout.export.evaluation.recorded_inputs import recorded_exporter, recorded_template
from bakeout.export.exporting.onnx_export import export_checkpoint
from bakeout.export.recipes.bake_options import BakeOptions, ExporterName
from bakeout.export.running.refusals import Refusals
from bakeout.export.running.runner import Runner
from bakeout.graph_passes.graph.graph_file import load_graph
from bakeout.graph_passes.graph.precision import stored_precision
from bakeout.models.checkpoint.checkpoint import Checkpoint
from bakeout.models.data.tokenizers.chat_options import CHAT_TEMPLATE, ChatTemplateOptions, recorded_options
from bakeout.models.data.tokenizers.tokenization import Tokenizer, load_tokenizer
from bakeout.models.errors import BakeoutError
from bakeout.models.files.writing import scratch_directory
from bakeout.models.plan import Plan
from bakeout.models.plan.plan_file import load_plan

Which = Literal["base", "artifact"]
_STORED: dict[str, Precision | str] = {"float32": "fp32", "float16": "fp16", "quantised": "quantised"}


class Models:
    """An artifact and its base model. Use it as a context manager: what it makes vanishes with it.

    ``directory`` can be a policy: for ONNX Runtime ``over`` an artifact, without for peft.
    """

    def __init__(self, directory: Path, base: str | Path, over: Path | None = None) -> None:
        self.base = model_source(base)
        self.plan: Plan = load_plan(directory / PLAN)
        is_policy = adapter_of(read_manifest(directory)) is not None
        self._adapter = directory / ADAPTER if over else None
        # What runs: None where it is made of the base model.
        self._runs = over if is_policy else directory
        self._template = recorded_template([self._runs]) if self._runs else self._fitted_template()
        self.refusals = Refusals.of_plan(self.plan, self.tokenizer)
        self._scratch = ExitStack()
        self._precision: Precision | str | None = None
        self._made: dict[Which, Path] = {}
        self._open: tuple[Which, Runner] | None = None

    def __enter__(self) -> Models:
        return self

    def __exit__(self, *_: object) -> None:
        self._close()

    @cached_property
    def own(self) -> Precision | str:
        """The precision that the artifact is stored in; a checkpoint is exported in fp32.

        ``quantised`` where baking did not quantise it, but its graph was so before.
        """
        if self._runs is None or self.graph is None:
            return "fp32"
        chosen: Precision | None = read_manifest(self._runs).get("options", {}).get("quantize")
        return chosen or _stored(self.graph)

    @cached_property
    def graph(self) -> Path | None:
        """The artifact's graph; None where it has none of its own."""
        if self._runs is None or local_form(self._runs) == "checkpoint":
            return None
        return find_graph(self._runs)

    @cached_property
    def exporter(self) -> ExporterName:
        """What exported the artifact, and exports its base model and other precisions; ``auto`` where nothing did."""
        return recorded_exporter([self._runs] if self._runs else [])

    @cached_property
    def tokenizer(self) -> Tokenizer:
        """The artifact's."""
        if self._runs is not None:
            return load_tokenizer(self._runs)
        own = load_tokenizer(self.base if isinstance(self.base, Path) else self.base.directory)
        return own if self._template is None else self._template.applied_to(own)

    def refusals_of(self, which: Which) -> Refusals:
        """The refusals of a model: the base model has none, whatever it says."""
        return self.refusals if which == "artifact" else Refusals()

    @property
    def template(self) -> dict[str, Any] | None:
        """The chat template that the base model is asked through, as JSON; None for its tokenizer's."""
        return None if self._template is None else self._template.model_dump(mode="json")

    @property
    def checkpoint(self) -> Checkpoint | None:
        """The base model as a checkpoint, if it is one."""
        return self.base if isinstance(self.base, Checkpoint) else None

    def runner(self, which: Which, precision: Precision | str) -> Runner:
        """A model in a precision. Raises ``BakeoutError`` where it cannot be made in that."""
        if precision != self._precision:
            self._close()
            self._precision = precision
        if which not in self._made:
            self._open = None
            scratch = self._scratch.enter_context(scratch_directory())
            self._made[which] = (self._base_in if which == "base" else self._artifact_in)(scratch, precision)
        if self._open is None or self._open[0] != which:
            self._open = None
            template = self._template if which == "base" else None
            runner = Runner(self._made[which], chat_template=template)
            if which == "artifact" and precision == self.own:
                runner.use_adapter(self._adapter)
            self._open = (which, runner)
        return self._open[1]

    def _fitted_template(self) -> ChatTemplateOptions | None:
        """What is made of the base model and the plan renders chats as the plan was fitted."""
        record = self.plan.provenance.get(CHAT_TEMPLATE)
        return recorded_options(record) if record else None

    def _close(self) -> None:
        self._open = None
        self._made.clear()
        self._scratch.close()

    def _artifact_in(self, scratch: Path, precision: Precision | str) -> Path:
        if self._runs is not None and precision == self.own:
            return as_onnx(self._runs, scratch, self.exporter)
        options = self._options(precision)
        model = self.base if isinstance(self.base, Path) else self.base.directory
        # How far a coarser graph is from the plan's canary is no reason not to measure it.
        return bake(model, self.plan, scratch / "artifact", options, canary=False).directory

    def _base_in(self, scratch: Path, precision: Precision | str) -> Path:
        options = self._options(precision)
        if isinstance(self.base, Checkpoint):
            prompts = self.plan.canary.input_ids.tolist()
            graph = export_checkpoint(self.base.directory, scratch, options.dtype, prompts, options.exporter)
        else:
            graph = self.base
        if options.quantize is None:
            return graph
        if len(graphs_of(graph)) > 1:
            raise BakeoutError("The base model is two graphs, which are not quantised.", "`base`: its checkpoint.")
        made = scratch / precision
        made.mkdir()
        quantise(load_graph(graph), made, options.quantize)
        for path in companion_files(home_of(graph)):
            shutil.copyfile(path, made / path.name)
        return made / GRAPH

    def _options(self, precision: Precision | str) -> BakeOptions:
        """How a model in a precision is made of the base model. Raises ``BakeoutError`` where none can be."""
        stored = _stored(self.base) if isinstance(self.base, Path) else None
        if stored is None and (precision == "fp32" or precision == "fp16"):
            return BakeOptions(dtype=precision, exporter=self.exporter)
        if stored in (None, "fp32") and (precision == "int8" or precision == "int4"):
            return BakeOptions(quantize=precision, exporter=self.exporter)
        if precision == stored:
            return BakeOptions()
        form = "a checkpoint" if stored is None else f"an ONNX graph in {stored}"
        like = "the graph that the plan was baked into" if precision == "quantised" else "its checkpoint"
        raise BakeoutError(f"The base model is {form}, of which none in {precision} can be made.", f"`base`: {like}.")


def _stored(graph: Path) -> Precision | str:
    return _STORED[stored_precision(load_graph(graph))]
