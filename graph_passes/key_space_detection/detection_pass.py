"""Key Space Detection (arXiv 2503.21730, section 3.2) in a decoder graph: a check, a refusal, an early exit."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import Any

import numpy as np
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
from bakeout.graph_passes.key_space_detection.early_exit import part
from bakeout.graph_passes.key_space_detection.latch import Latched, latch_codes, read_latch
from bakeout.graph_passes.key_space_detection.latch_place import choose_value_cache
from bakeout.graph_passes.key_space_detection.margins import Margins
from bakeout.graph_passes.key_space_detection.query_end import ends_query
from bakeout.graph_passes.key_space_detection.refusal import refusal_logits, refusal_tokens_matched
from bakeout.graph_passes.key_space_detection.value_cache import ValueCache
from bakeout.graph_passes.key_space_detection.window import Window, read_window, read_window_without_mask
from bakeout.models.plan import KeySpaceDetection
from bakeout.models.plan.receipt import Receipt

PREFIX = "bakeout.key_space_detection"


@dataclass(frozen=True, eq=False)
class Verdict:
    """The check's decisions, as values of the graph.

    ``refused``: bool [B, W], or [B, 1] where it holds for a row's whole run: the positions that generate the refusal.
    ``counts``: bool, likewise: the new tokens that belong to the refused conversation. ``leaves_latch``: bool [B, W],
    the new slots that get the latch. ``any_refused``, ``all_refused``: one bool; the latter means that no new token
    that counts is left to compute.
    """

    refused: ir.Value
    counts: ir.Value
    leaves_latch: ir.Value
    any_refused: ir.Value
    all_refused: ir.Value


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
    is skipped where nothing is; without, the graph is free of branches. ``monitor`` adds the outputs ``refused``
    (bool [B], at the last real token) and ``margin`` (float32 [B, regions], likewise).

    ``latch_layer``: the number of the cache that is to carry the latch, where another graph has chosen it.
    ``index`` is the intervention's place in the plan, ``receipts`` one per layer, once the pass has run. Raises
    ``GraphError`` where the graph has no KV cache, no room for the latch, or not the layers that the plan names.
    """

    def __init__(
        self,
        intervention: KeySpaceDetection,
        index: int,
        *,
        early_exit: bool = True,
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
        edited = [(keys[layer].node.name or "", keys[layer].value.name or "") for layer in self.intervention.layers]

        build = GraphBuilder(graph, PREFIX)
        if anatomy.attention_mask is None:
            window = read_window_without_mask(build, anatomy.input_ids, cache.past)
        else:
            window = read_window(build, anatomy.input_ids, anatomy.attention_mask, packed=cache.is_packed)
        newest = cache.newest_slot(build, window)
        longest = len(self.intervention.refusal)
        latched = read_latch(build, cache.past, newest, longest, cache.head_size, cache.unit)
        verdict, margin = self._judge(build, anatomy, window, latched)
        matched, code = self._state(build, anatomy, cache, window, latched, verdict)
        graph.extend(build.nodes)
        self._leave_latch(graph, cache, verdict, code, before=behind.has(cache.writer))
        self._select_refusal(graph, anatomy, verdict, matched)
        if self.monitor:
            self._report(graph, anatomy, verdict, margin, window)
        graph.sort()
        moved = self._part(graph, anatomy, cache, behind, window, verdict, matched, code) if self.early_exit else 0
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
                    "early_exit": self.early_exit,
                    "nodes_skipped": moved,
                },
            )
            for layer, (node, tensor) in zip(self.intervention.layers, edited, strict=True)
        ]
        return ir.passes.PassResult(model, modified=True)

    @property
    def _count(self) -> int:
        return self.intervention.regions.shape[0]

    def _require_fit(self, anatomy: Anatomy) -> None:
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

    def _judge(
        self, build: GraphBuilder, anatomy: Anatomy, window: Window, latched: Latched
    ) -> tuple[Verdict, ir.Value]:
        """The verdict, and the margins at each row's last real token (float32 [B, regions])."""
        watched = [anatomy.keys(self.intervention.keys)[layer] for layer in self.intervention.layers]
        margins = Margins(build, self.intervention, [key.width for key in watched])
        keys = [key.value for key in watched]
        batch = build.dimension(anatomy.input_ids, 0)
        if self.intervention.positions == "every":
            at_all = margins.at_all(build, keys, window, batch)
            inside = build.cast(build("Squeeze", margins.inside(build, at_all), [2]), ir.DataType.INT64)
            hits = build("Mul", inside, window.is_real)
            hits_so_far = build("CumSum", hits, 1)
            refused = build("Or", latched.latched, build("Greater", hits_so_far, 0), name="refused_positions")
            counts = build("Or", latched.latched, build("Greater", build("Sub", hits_so_far, hits), 0))
            leaves_latch = refused
            at_last = build("Unsqueeze", window.last, [2])
            spread = build("Expand", at_last, [1, 1, self._count])
            margin = build("Squeeze", build("GatherElements", at_all, spread, axis=1), [1], name="margin")
            is_left = build("And", build("Not", refused), build("Cast", window.is_real, to=ir.DataType.BOOL))
        else:
            tested = window.has_any
            if self.intervention.positions == "query":
                is_several = build("Greater", window.length, 1)
                if self.intervention.query_end:
                    ends = ends_query(build, self.intervention.query_end, anatomy.input_ids, window)
                    is_several = build("And", is_several, ends)
                is_query = build("Or", build("Equal", window.past, 0), is_several)
                tested = build("And", tested, is_query)
            if margins.are_many and self.intervention.positions == "query" and self.early_exit and not self.monitor:
                margin = margins.where_tested(build, _any(build, tested, "any_tested"), keys, window, batch)
            else:
                margin = margins.at_last(build, keys, window, batch)
            refused = build(
                "Or", latched.latched, build("And", margins.inside(build, margin), tested), name="refused_rows"
            )
            counts = latched.latched
            from_last = build("GreaterOrEqual", window.index, window.last)
            leaves_latch = build("And", refused, build("Or", latched.latched, from_last), name="leaves_latch")
            is_left = build("Not", refused)
        any_refused = _any(build, refused, "any_refused")
        all_refused = build("And", any_refused, build("Not", _any(build, is_left, "any_left")), name="all_refused")
        return Verdict(refused, counts, leaves_latch, any_refused, all_refused), margin

    def _state(
        self,
        build: GraphBuilder,
        anatomy: Anatomy,
        cache: ValueCache,
        window: Window,
        latched: Latched,
        verdict: Verdict,
    ) -> tuple[ir.Value, ir.Value]:
        """Where the refusal stands: tokens matched, int64 [B, W], and the latch's code for them, [B, W, head size].

        Where nothing is refused, both are zeros for one position of one row, which nothing reads.
        """
        refusal = self.intervention.refusal
        codes = latch_codes(len(refusal), cache.head_size)

        def state(build: GraphBuilder) -> tuple[ir.Value, ir.Value]:
            matched = refusal_tokens_matched(build, refusal, anatomy.input_ids, verdict.counts, latched, window)
            code = build("Gather", build.constant(codes, "latch.codes"), matched)
            return matched, cache.in_cache(build, code)

        def nothing(build: GraphBuilder) -> tuple[ir.Value, ir.Value]:
            zero = build.constant(np.zeros((1, 1), np.int64), "nothing_matched")
            no_code = build.constant(np.zeros((1, 1, cache.head_size), np.float32), "no_code")
            return build("Identity", zero), build("Cast", no_code, to=cache.dtype)

        if not self.early_exit:
            return state(build)
        matched, code = build.choose(verdict.any_refused, state, nothing, ["state.matched", "state.code"])
        return matched, code

    def _behind(self, graph: ir.Graph, anatomy: Anatomy) -> Behind:
        nodes = nodes_behind(graph, anatomy.keys(self.intervention.keys)[self.intervention.layers[-1]].value)
        writers = [writer for cache in anatomy.caches if (writer := find_writer(cache)) and writer.node in nodes]
        states = [state for state in anatomy.states if state.present.producer() in nodes]
        return Behind(tuple(writers), tuple(states))

    def _leave_latch(
        self, graph: ir.Graph, cache: ValueCache, verdict: Verdict, code: ir.Value, *, before: bool
    ) -> None:
        """Write the code into the new slots of the cache that carries the latch."""
        build = GraphBuilder(graph, f"{PREFIX}.latched_value")
        if before:
            cache.write_before(build, verdict.leaves_latch, code)
        else:
            # The check may read what this layer's attention gives.
            for own, instead in cache.write_after(build, verdict.leaves_latch, code):
                _take_over(graph, own, instead)
        graph.extend(build.nodes)

    def _select_refusal(self, graph: ir.Graph, anatomy: Anatomy, verdict: Verdict, matched: ir.Value) -> None:
        """Select between the model's logits and the refusal's, row by row or position by position."""
        build = GraphBuilder(graph, f"{PREFIX}.said")
        logits = anatomy.logits

        def select(build: GraphBuilder) -> tuple[ir.Value]:
            said = self._refusal_logits(build, anatomy, matched)
            refused = _kept(build, anatomy, verdict.refused)
            return (build("Where", build("Unsqueeze", refused, [2]), said, logits),)

        def keep(build: GraphBuilder) -> tuple[ir.Value]:
            return (build("Identity", logits),)

        (output,) = build.choose(verdict.any_refused, select, keep, ["logits"]) if self.early_exit else select(build)
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

    def _report(self, graph: ir.Graph, anatomy: Anatomy, verdict: Verdict, margin: ir.Value, window: Window) -> None:
        build = GraphBuilder(graph, f"{PREFIX}.monitor")
        refused = verdict.refused
        if self.intervention.positions == "every":
            as_number = build("Cast", refused, to=ir.DataType.INT64)
            refused = build("Cast", build("GatherElements", as_number, window.last, axis=1), to=ir.DataType.BOOL)
        rows = build("Squeeze", refused, [1])
        margins = build("Identity", margin)
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
        self,
        graph: ir.Graph,
        anatomy: Anatomy,
        cache: ValueCache,
        behind: Behind,
        window: Window,
        verdict: Verdict,
        matched: ir.Value,
        code: ir.Value,
    ) -> int:
        """Move all that lies behind the check into a branch, but for caches that it cannot extend itself."""

        def refuse(build: GraphBuilder) -> list[ir.Value]:
            outputs = [self._refusal_logits(build, anatomy, matched)]
            for writer in behind.of_attention:
                outputs.append(writer.extended(build, writer.cache.past_key, window))
                if writer.node is cache.writer.node:
                    outputs.append(cache.extended_with(build, verdict.leaves_latch, code, window))
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


def _any(build: GraphBuilder, condition: ir.Value, name: str) -> ir.Value:
    number = build("Cast", condition, to=ir.DataType.INT64)
    return build("Greater", build("ReduceMax", number, keepdims=0), 0, name=name)


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
