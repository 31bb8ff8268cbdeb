"""Key Space Detection (arXiv 2503.21730, section 3.2) in a decoder graph: a check, a refusal, an early exit."""

from __future__ import annotations

import logging
from dataclasses import dataclass, replace
from typing import Any

import onnx_ir as ir
from numpy.typing import NDArray
from onnx_ir.passes.common import (
    CommonSubexpressionEliminationPass,
    DeduplicateInitializersPass,
    LiftConstantsToInitializersPass,
    RemoveUnusedNodesPass,
)

from bakeout.graph_passes.errors import GraphError
from bakeout.graph_passes.graph.anatomy import Anatomy, read_anatomy
from bakeout.graph_passes.graph.caches import State
from bakeout.graph_passes.graph.dependence import nodes_behind
from bakeout.graph_passes.graph.graph_builder import END, GraphBuilder
from bakeout.graph_passes.graph.graph_file import graph_digest
from bakeout.graph_passes.key_space_detection.cache_writer import CacheWriter, find_writer
from bakeout.graph_passes.key_space_detection.check import Check, Monitored, Verdict
from bakeout.graph_passes.key_space_detection.early_exit import casts_weights, part
from bakeout.graph_passes.key_space_detection.latch import latch_codes
from bakeout.graph_passes.key_space_detection.latch_place import choose_value_cache
from bakeout.graph_passes.key_space_detection.margins import Margins
from bakeout.graph_passes.key_space_detection.refusal import refusal_logits
from bakeout.graph_passes.key_space_detection.value_cache import Latch, ValueCache
from bakeout.models.plan import KeySpaceDetection, counted
from bakeout.models.plan.receipt import Receipt

PREFIX = "bakeout.key_space_detection"


@dataclass(frozen=True, eq=False)
class Behind:
    """What of a graph's caches is computed from the keys that are checked: the writers of attention layers' caches, as
    far as they are known, and other layers' states.
    """

    of_attention: tuple[CacheWriter, ...]
    states: tuple[State, ...]

    def has(self, writer: CacheWriter) -> bool:
        """Whether the writer is one of them."""
        return any(own.node is writer.node for own in self.of_attention)


class KeySpaceDetectionPass(ir.passes.InPlacePass):
    """Put a plan's Key Space Detection into a decoder graph that has a KV cache.

    The check reads the key vectors of the plan's layers. A refused row or position generates the refusal, token after
    token, in any decode loop: the latch keeps how much has been generated, in a value cache (``latch_place``).
    With ``early_exit``, what lies behind the check is in a branch that is skipped where all is refused, and selecting
    is skipped where nothing is; without, the graph is free of branches. None: with branches, but without an exit where
    the CPU would cast the weights behind it (``casts_weights``). ``monitor`` adds the outputs ``refused`` (bool [B],
    at the last real token) and ``margin`` (float32 [B, regions], likewise).

    ``latch_layer``: the number of the cache that is to carry the latch, where another graph has chosen it.
    ``index`` is the intervention's place in the plan, ``receipts`` one per layer, once the pass has run. Raises
    ``GraphError`` where the graph has no KV cache, no room for the latch, or not the layers that the plan names.
    """

    def __init__(
        self,
        intervention: KeySpaceDetection,
        index: int,
        *,
        early_exit: bool | None = None,
        monitor: bool = False,
        latch_layer: int | None = None,
    ) -> None:
        super().__init__()
        self.intervention = intervention
        self.index = index
        self.early_exit = early_exit
        self.monitor = monitor
        self.latch_layer = latch_layer
        self.receipts: list[Receipt] = []

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Edit the graph in place."""
        before = graph_digest(model)
        _share_subexpressions(model)
        anatomy = read_anatomy(model)
        cache = choose_value_cache(anatomy, self.latch_layer)
        self._require_fit(anatomy)
        graph = model.graph
        behind = self._behind(graph, anatomy)
        keys = anatomy.keys(self.intervention.keys)
        deepest = keys[self.intervention.layers[-1]].value
        exits = not casts_weights(nodes_behind(graph, deepest)) if self.early_exit is None else self.early_exit
        edited = [(keys[layer].node.name or "", keys[layer].value.name or "") for layer in self.intervention.layers]

        build = GraphBuilder(graph, PREFIX)
        check = Check(self.intervention, anatomy, cache, branches=self._branches, monitor=self.monitor)
        verdict, monitored = check.judge(build)
        if exits and behind.of_attention and self.intervention.positions != "every":
            verdict = _latched_whole(build, check, verdict)
        graph.extend(build.nodes)
        self._leave_latch(graph, cache, verdict, before=behind.has(cache.writer))
        self._select_refusal(graph, anatomy, verdict)
        if monitored is not None:
            self._report(graph, anatomy, monitored)
        graph.sort()
        moved = self._part(graph, anatomy, cache, behind, check, verdict) if exits else 0
        RemoveUnusedNodesPass()(model)
        after = graph_digest(model)
        self.receipts = [
            Receipt(
                intervention=self.index,
                kind=self.intervention.kind,
                layer=layer,
                node=node,
                tensor=tensor,
                count=self._count,
                before=before,
                after=after,
                detail={
                    "positions": self.intervention.positions,
                    "early_exit": exits,
                    "nodes_skipped": moved,
                },
            )
            for layer, (node, tensor) in zip(self.intervention.layers, edited, strict=True)
        ]
        return ir.passes.PassResult(model, modified=True)

    @property
    def _branches(self) -> bool:
        """Whether there may be branches at all: those of the check hold no weights."""
        return self.early_exit is not False

    @property
    def _count(self) -> int:
        return self.intervention.regions.shape[0]

    def _require_fit(self, anatomy: Anatomy) -> None:
        tokens = anatomy.input_ids.shape
        if self.intervention.positions == "mean" and tokens is not None and isinstance(tokens[1], int):
            raise GraphError(
                f"The graph takes {counted(tokens[1], 'token')} at a time, and the mean key is that of a whole prompt.",
                "Fit with `positions: step` or `every`, or export the graph with a free length.",
            )
        last, keys = self.intervention.layers[-1], anatomy.keys(self.intervention.keys)
        if last >= len(keys):
            what = "feed-forward layers" if self.intervention.keys == "key_vector" else "routers"
            raise GraphError(
                f"Key Space Detection names layer {last}, but the graph has {len(keys)} {what}.",
                "Bake the plan into the model it was fitted on.",
            )
        regions = self.intervention.regions
        widths = [keys[layer].width for layer in self.intervention.layers]
        if sum(widths) != regions.shape[1]:
            raise GraphError(
                f"The {regions.noun}s have {regions.shape[1]} dimensions, but the graph's keys have "
                f"{' + '.join(map(str, widths))}.",
                "Bake the plan into the model it was fitted on.",
            )
        if not isinstance(_vocabulary(anatomy), int):
            raise GraphError("The graph does not say how many logits a token has.", "Export the model again.")

    def _behind(self, graph: ir.Graph, anatomy: Anatomy) -> Behind:
        nodes = nodes_behind(graph, anatomy.keys(self.intervention.keys)[self.intervention.layers[-1]].value)
        writers = [writer for cache in anatomy.caches if (writer := find_writer(cache)) and writer.node in nodes]
        states = [state for state in anatomy.states if state.present.producer() in nodes]
        return Behind(tuple(writers), tuple(states))

    def _leave_latch(self, graph: ir.Graph, cache: ValueCache, verdict: Verdict, *, before: bool) -> None:
        """Write the code into the new slots of the cache that carries the latch."""
        build = GraphBuilder(graph, f"{PREFIX}.latched_value")
        latch = self._latch(cache, verdict)
        if before:
            cache.write_before(build, latch)
        else:
            # The check may read what this layer's attention gives.
            for own, instead in cache.write_after(build, latch):
                _take_over(graph, own, instead)
        graph.extend(build.nodes)

    def _latch(self, cache: ValueCache, verdict: Verdict) -> Latch:
        codes = latch_codes(len(self.intervention.refusal), cache.head_size)

        def code(build: GraphBuilder) -> ir.Value:
            return cache.in_cache(build, build("Gather", build.constant(codes, "latch.codes"), verdict.matched))

        return Latch(verdict.leaves_latch, code, verdict.any_refused if self._branches else None)

    def _select_refusal(self, graph: ir.Graph, anatomy: Anatomy, verdict: Verdict) -> None:
        """Select between the model's logits and the refusal's, row by row or position by position."""
        build = GraphBuilder(graph, f"{PREFIX}.said")
        logits = anatomy.logits

        def select(build: GraphBuilder) -> tuple[ir.Value]:
            said = self._refusal_logits(build, anatomy, verdict.matched)
            refused = _kept(build, anatomy, verdict.refused)
            return (build("Where", build("Unsqueeze", refused, [2]), said, logits),)

        def keep(build: GraphBuilder) -> tuple[ir.Value]:
            return (build("Identity", logits),)

        (output,) = build.choose(verdict.any_refused, select, keep, ["logits"]) if self._branches else select(build)
        _take_over(graph, logits, output)
        graph.extend(build.nodes)

    def _refusal_logits(self, build: GraphBuilder, anatomy: Anatomy, matched: ir.Value) -> ir.Value:
        kept = _kept(build, anatomy, matched)
        return refusal_logits(
            build,
            self.intervention.refusal,
            self.intervention.other_ends,
            kept,
            _vocabulary(anatomy),
            _dtype(anatomy.logits),
        )

    def _report(self, graph: ir.Graph, anatomy: Anatomy, monitored: Monitored) -> None:
        build = GraphBuilder(graph, f"{PREFIX}.monitor")
        rows = build("Squeeze", monitored.refused, [1])
        margins = build("Identity", monitored.margin)
        batch = anatomy.input_ids.shape
        assert batch is not None, "input_ids has a shape"
        rows.name, rows.type, rows.shape = "refused", ir.TensorType(ir.DataType.BOOL), ir.Shape([batch[0]])
        margins.name, margins.type, margins.shape = (
            "margin",
            ir.TensorType(ir.DataType.FLOAT),
            ir.Shape([batch[0], self._count]),
        )
        graph.extend(build.nodes)
        graph.outputs.extend([rows, margins])

    def _part(
        self, graph: ir.Graph, anatomy: Anatomy, cache: ValueCache, behind: Behind, check: Check, verdict: Verdict
    ) -> int:
        """Move all that lies behind the check into a branch, but for caches that it cannot extend itself."""

        def refuse(build: GraphBuilder) -> list[ir.Value]:
            outputs = [self._refusal_logits(build, anatomy, verdict.matched)]
            window = check.window(build)
            for writer in behind.of_attention:
                outputs.append(writer.extended(build, writer.cache.past_key, window))
                if writer.node is cache.writer.node:
                    outputs.append(cache.extended_with(build, self._latch(cache, verdict), window))
                else:
                    outputs.append(writer.extended(build, writer.cache.past_value, window))
            return outputs + [build("Identity", state.past) for state in behind.states]

        names = ["logits"]
        for writer in behind.of_attention:
            names += [value.name or "" for value in (writer.cache.present_key, writer.cache.present_value)]
        names += [state.present.name or "" for state in behind.states]
        by_name = {output.name: output for output in graph.outputs}
        build = GraphBuilder(graph, f"{PREFIX}.refused")
        return part(graph, build, verdict.all_refused, [by_name[name] for name in names], refuse)


def _latched_whole(build: GraphBuilder, check: Check, verdict: Verdict) -> Verdict:
    """The verdict that latches all real slots of a run that exits early.

    The layers behind the check compute nothing for such a run. Who goes back into it, to another query behind the same
    prefix, would go on from empty caches, and be answered wrongly without a word; so that is refused.
    """
    is_real = build("Cast", check.window(build).is_real, to=ir.DataType.BOOL)
    whole = build("And", verdict.all_refused, is_real)
    return replace(verdict, leaves_latch=build("Or", verdict.leaves_latch, whole, name="leaves_latch_whole"))


def detection_constants(intervention: KeySpaceDetection, index: int, dtype: ir.DataType) -> dict[str, NDArray[Any]]:
    """The constants of the regions by their names in a graph, of whatever ``dtype`` its activations are."""
    scratch = ir.Graph([], [], nodes=[])
    Margins(GraphBuilder(scratch, PREFIX), intervention, widths=())
    return {name: value.const_value.numpy() for name, value in scratch.initializers.items() if value.const_value}


def _share_subexpressions(model: ir.Model) -> None:
    """Compute once what a graph computes repeatedly: runtimes do not look across the branches that it gets."""
    # It would tell of every input with a default that it leaves it apart, as it must.
    logging.getLogger("onnx_ir.passes.common.initializer_deduplication").setLevel(logging.ERROR)
    LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)(model)
    DeduplicateInitializersPass()(model)
    CommonSubexpressionEliminationPass()(model)


def _kept(build: GraphBuilder, anatomy: Anatomy, value: ir.Value) -> ir.Value:
    """Of a ``value`` [B, W] (or [B, 1]) the last positions, those for which the graph gives logits."""
    if anatomy.logits_to_keep is None:
        return value
    count = build("Reshape", build.cast(anatomy.logits_to_keep, ir.DataType.INT64), [1])
    return build("Slice", value, build("Neg", count), [END], [1])


def _take_over(graph: ir.Graph, before: ir.Value, after: ir.Value) -> None:
    """Make ``after`` the graph output that ``before`` was, under its name."""
    name = before.name
    before.name = f"{name}.base"
    after.name, after.type, after.shape = name, before.type, before.shape
    graph.outputs[list(graph.outputs).index(before)] = after


def _vocabulary(anatomy: Anatomy) -> int:
    shape = anatomy.logits.shape
    if shape is None or not isinstance(shape[-1], int):
        raise GraphError("The graph does not say how many logits a token has.")
    return shape[-1]


def _dtype(value: ir.Value) -> ir.DataType:
    assert value.dtype is not None, "inputs and outputs of a graph have types"
    return value.dtype
