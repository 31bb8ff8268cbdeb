"""The check: which positions of a run generate the refusal, and how far each conversation has come in it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import onnx_ir as ir

from bakeout.graph_passes.graph.anatomy import Anatomy, Key
from bakeout.graph_passes.graph.graph_builder import GraphBuilder
from bakeout.graph_passes.key_space_detection.latch import Latched, may_be_latched, read_latch
from bakeout.graph_passes.key_space_detection.margins import Margins, keys_of_rows
from bakeout.graph_passes.key_space_detection.query_end import ends_query
from bakeout.graph_passes.key_space_detection.query_start import tokens_of_query
from bakeout.graph_passes.key_space_detection.refusal import refusal_tokens_matched
from bakeout.graph_passes.key_space_detection.value_cache import ValueCache
from bakeout.graph_passes.key_space_detection.window import Window, read_window, read_window_without_mask
from bakeout.models.plan import KeySpaceDetection


@dataclass(frozen=True, eq=False)
class Verdict:
    """The check's decisions, as values of the graph.

    ``refused``: bool [B, W], or [B, 1] where it holds for a row's whole run: the positions that generate the refusal.
    ``leaves_latch``: bool [B, W], the new slots that get the latch. ``any_refused``, ``all_refused``: one bool; the
    latter means that no new token that counts is left to compute. ``matched``: int64 [B, W], how many tokens of the
    refusal the conversation ends with. Where nothing is refused, the others may be of one position of one row.
    """

    refused: ir.Value
    leaves_latch: ir.Value
    any_refused: ir.Value
    all_refused: ir.Value
    matched: ir.Value


@dataclass(frozen=True, eq=False)
class Monitored:
    """Of each row: whether its last real token is refused, bool [B, 1], and the margins tested, float32 [B, n]."""

    refused: ir.Value
    margin: ir.Value


class Check:
    """The check of a plan's Key Space Detection in a graph, whose latch is in ``cache``.

    ``branches``: whether what only some runs need may be in branches.
    """

    def __init__(
        self, detection: KeySpaceDetection, anatomy: Anatomy, cache: ValueCache, *, branches: bool, monitor: bool
    ) -> None:
        self._detection = detection
        self._anatomy = anatomy
        self._cache = cache
        self._branches = branches
        self._monitor = monitor

    def window(self, build: GraphBuilder) -> Window:
        """The run's new tokens and its past."""
        anatomy = self._anatomy
        if anatomy.attention_mask is None:
            return read_window_without_mask(build, anatomy.input_ids, self._cache.past)
        return read_window(build, anatomy.input_ids, anatomy.attention_mask, packed=self._cache.is_packed)

    def judge(self, build: GraphBuilder) -> tuple[Verdict, Monitored | None]:
        """Decide; what a monitor shows is given where there is one."""
        skips = self._branches and not self._monitor and self._tests_queries
        if skips and self._cache.holds_floats:
            return self._judge_where_needed(build), None
        return self._judge_all(build)

    @property
    def _tests_queries(self) -> bool:
        """Whether queries alone are tested."""
        return self._detection.positions in ("query", "mean")

    def _judge_where_needed(self, build: GraphBuilder) -> Verdict:
        """Decide where there is a query, or a row that may be latched: an answer's tokens need no more than that."""
        window = self.window(build)
        is_first = build("Less", build("ReduceMin", window.past, keepdims=0), 1)
        may_be_query = build("Or", build("Greater", window.length, 1), is_first, name="may_be_query")

        def yes(build: GraphBuilder) -> tuple[ir.Value]:
            return (build("Identity", build.constant(np.ones(1, np.bool_), "yes")),)

        def latched(build: GraphBuilder) -> tuple[ir.Value]:
            return (may_be_latched(build, self._cache.past, self._cache.newest_slot(build, window)),)

        # Taken here: keys that a branch reads are held until then, those of all tokens in all layers.
        rows = None if self._detection.positions == "mean" else self._rows(build, window)

        def judged(build: GraphBuilder) -> tuple[ir.Value, ...]:
            verdict, _ = self._judge_all(build, rows)
            return tuple(vars(verdict).values())

        def nothing(build: GraphBuilder) -> tuple[ir.Value, ...]:
            one = build.constant(np.zeros((1, 1), np.bool_), "nothing_refused")
            no = build.constant(np.array(False), "no")
            return tuple(build("Identity", value) for value in (one, one, no, no, self._nothing_matched(build)))

        (needed,) = build.choose(may_be_query, yes, latched, ["needed"])
        return Verdict(*build.choose(needed, judged, nothing, [f"verdict.{name}" for name in Verdict.__annotations__]))

    def _rows(self, build: GraphBuilder, window: Window, counted: ir.Value | None = None) -> list[ir.Value]:
        keys, batch = self._keys, build.dimension(self._anatomy.input_ids, 0)
        return keys_of_rows(build, [key.value for key in keys], [key.width for key in keys], window, batch, counted)

    @property
    def _keys(self) -> list[Key]:
        return [self._anatomy.keys(self._detection.keys)[layer] for layer in self._detection.layers]

    def _judge_all(
        self, build: GraphBuilder, rows: Sequence[ir.Value] | None = None
    ) -> tuple[Verdict, Monitored | None]:
        window = self.window(build)
        newest = self._cache.newest_slot(build, window)
        longest = len(self._detection.refusal)
        latched = read_latch(build, self._cache.past, newest, longest, self._cache.head_size, self._cache.unit)
        margins = Margins(build, self._detection, [key.width for key in self._keys])
        if self._detection.positions == "every":
            return self._every(build, margins, [key.value for key in self._keys], window, latched)
        return self._last(build, margins, rows, window, latched)

    def _every(
        self, build: GraphBuilder, margins: Margins, keys: list[ir.Value], window: Window, latched: Latched
    ) -> tuple[Verdict, Monitored | None]:
        """Every new token is tested: a position is refused from the first one inside on."""
        near = margins.near_at_all if self._branches and not self._monitor else margins.at_all
        at_all = near(build, keys, window, build.dimension(self._anatomy.input_ids, 0))
        inside = build.cast(build("Squeeze", margins.inside(build, at_all), [2]), ir.DataType.INT64)
        hits = build("Mul", inside, window.is_real)
        hits_so_far = build("CumSum", hits, 1)
        refused = build("Or", latched.latched, build("Greater", hits_so_far, 0), name="refused_positions")
        counts = build("Or", latched.latched, build("Greater", build("Sub", hits_so_far, hits), 0))
        is_left = build("And", build("Not", refused), build("Cast", window.is_real, to=ir.DataType.BOOL))
        verdict = self._verdict(build, window, latched, refused, refused, counts, is_left)
        if not self._monitor:
            return verdict, None
        spread = build("Expand", build("Unsqueeze", window.last, [2]), [1, 1, margins.count])
        margin = build("Squeeze", build("GatherElements", at_all, spread, axis=1), [1], name="margin")
        as_number = build("Cast", refused, to=ir.DataType.INT64)
        at_last = build("Cast", build("GatherElements", as_number, window.last, axis=1), to=ir.DataType.BOOL)
        return verdict, Monitored(at_last, margin)

    def _last(
        self,
        build: GraphBuilder,
        margins: Margins,
        rows: Sequence[ir.Value] | None,
        window: Window,
        latched: Latched,
    ) -> tuple[Verdict, Monitored | None]:
        """A row's last real token, or its mean key, is tested, or that of a query alone: all or nothing is refused."""
        detection = self._detection
        tested = window.has_any
        counted = None
        if detection.positions == "mean":
            counted = tokens_of_query(build, detection.query_start, self._anatomy.input_ids, window)
        if self._tests_queries:
            is_several = build("Greater", window.length, 1)
            if detection.query_end:
                ends = ends_query(build, detection.query_end, self._anatomy.input_ids, window)
                is_several = build("And", is_several, ends)
            is_query = build("Or", build("Equal", window.past, 0), is_several)
            tested = build("And", tested, is_query)
        rows = self._rows(build, window, counted) if rows is None else rows
        if margins.are_many and self._tests_queries and self._branches and not self._monitor:
            margin = margins.where_tested(build, any_of(build, tested, "any_tested"), rows)
        else:
            margin = margins.of_rows(build, rows)
        inside = build("And", margins.inside(build, margin), tested)
        refused = build("Or", latched.latched, inside, name="refused_rows")
        from_last = build("GreaterOrEqual", window.index, window.last)
        leaves_latch = build("And", refused, build("Or", latched.latched, from_last), name="leaves_latch")
        is_left = build("Not", refused)
        verdict = self._verdict(build, window, latched, refused, leaves_latch, latched.latched, is_left)
        return verdict, Monitored(refused, margin) if self._monitor else None

    def _verdict(
        self,
        build: GraphBuilder,
        window: Window,
        latched: Latched,
        refused: ir.Value,
        leaves_latch: ir.Value,
        counts: ir.Value,
        is_left: ir.Value,
    ) -> Verdict:
        """``counts``: bool, the new tokens that belong to the refused conversation; ``is_left``: that are not refused.

        Both are of the shape of ``refused``.
        """
        any_refused = any_of(build, refused, "any_refused")
        all_refused = build("And", any_refused, build("Not", any_of(build, is_left, "any_left")), name="all_refused")

        def matched(build: GraphBuilder) -> tuple[ir.Value]:
            refusal, input_ids = self._detection.refusal, self._anatomy.input_ids
            return (refusal_tokens_matched(build, refusal, input_ids, counts, latched, window),)

        def nothing(build: GraphBuilder) -> tuple[ir.Value]:
            return (build("Identity", self._nothing_matched(build)),)

        choose = partial(build.choose, any_refused, matched, nothing, ["state.matched"])
        (tokens,) = choose() if self._branches else matched(build)
        return Verdict(refused, leaves_latch, any_refused, all_refused, tokens)

    def _nothing_matched(self, build: GraphBuilder) -> ir.Value:
        return build.constant(np.zeros((1, 1), np.int64), "nothing_matched")


def any_of(build: GraphBuilder, condition: ir.Value, name: str) -> ir.Value:
    """Whether any element holds: one bool."""
    number = build("Cast", condition, to=ir.DataType.INT64)
    return build("Greater", build("ReduceMax", number, keepdims=0), 0, name=name)
