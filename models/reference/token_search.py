"""A search for token sequences whose keys lie inside and just outside of a check's regions.

A plan's canary says with them what is refused and what is not, and every artifact carries it: so nothing in it may come
from the data that the plan was fitted on. The search starts from random tokens, walks by single tokens along the
gradient of the margin (as GCG does, arXiv 2307.15043, for another purpose), and keeps no sequence that holds a run of
tokens of the data.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import PreTrainedModel

from bakeout.models.network.devices import input_device
from bakeout.models.network.key_sites import key_sites
from bakeout.models.network.probing import run_up_to
from bakeout.models.plan import Floats, Integers, Intervention
from bakeout.models.progress import Track, untracked
from bakeout.models.reference.hooks import Hooks
from bakeout.models.reference.search_vocabulary import FREE_TOKENS, Vocabulary

# The nearness (1 on the boundary) up to which a sequence is well inside, and the places beside the
# boundary that others are to lie at: an alpha that is 5 % off moves it across them, and rounding in half precision
# moves them by 2 % at most.
WELL_INSIDE = 0.9
BESIDE = 0.03
_NEAR_ENOUGH = 0.008
# Earlier tokens lie outside of all regions by this much: whichever positions are checked, the last one decides. Those
# of prompts' common frame can lie inside of regions without bounds; there it holds where earlier tokens are checked.
CLEAR = 1.02
# Sequences of one pass. With eight, ellipsoids of a small model are missed that 32 reach.
_BATCH = 32
# The gradient's best replacements at each place that are tried.
_BEST = 32
# Walks from other random tokens, the steps of each, and how many without progress end one.
_WALKS, _STEPS, _PATIENCE = 16, 40, 5
_STEPS_TO_BOUNDARY = 24
# Of all regions together, each of which has its share and what those before it left: large models take seconds for one.
# Without any sequence that is inside, the search ends earlier: what is so far out of reach, others do not come to.
_MOST_PASSES, _MOST_IN_VAIN = 500, 120
# A search is given up when this many passes came no nearer to any region: two hundred did not on real models either.
_PASSES_TO_COME_NEAR, _FAR = 40, 2.0


@dataclass(frozen=True, eq=False)
class _Tried:
    """Free tokens that the model has read: int64 [n, free], and how near they came, float64.

    ``nearness`` [n, regions]: of the key that decides over a prompt. ``earlier`` [n]: the least one at any token before
    the last, infinite where these do not matter.
    """

    free: Integers
    nearness: Floats
    earlier: Floats

    def row(self, index: int) -> _Tried:
        """One of them."""
        only = slice(index, index + 1)
        return _Tried(self.free[only], self.nearness[only], self.earlier[only])


def search_sequences(
    model: PreTrainedModel,
    interventions: Sequence[Intervention],
    vocabulary: Vocabulary,
    regions: Sequence[int],
    *,
    seed: int,
    track: Track = untracked,
) -> tuple[Integers, list[int]]:
    """For each of ``regions`` up to three sequences, and the regions that none was found for.

    The interventions are in force, weight edits apart, which ``model`` carries. The sequences, int64 [n, tokens], of
    one length: one well inside the region, one just inside and one just outside of all regions, whichever were found
    before the passes ran out. The same seed gives the same sequences on the same machine.
    """
    search = _Search(model, interventions, vocabulary, seed)
    sequences: list[Integers] = []
    missed = []
    share = min(_MOST_PASSES // len(regions), _MOST_IN_VAIN)
    for region in track(regions, "searching for the canary's tokens", len(regions)):
        in_vain = not sequences and (search.passes_run >= _MOST_IN_VAIN or search.is_out_of_reach)
        found = [] if in_vain else list(search.around(region, passes=share))
        sequences += found
        if not found:
            missed.append(region)
    free = np.array(sequences, dtype=np.int64).reshape(-1, FREE_TOKENS)
    return vocabulary.framed(free), missed


class _Search:
    def __init__(
        self, model: PreTrainedModel, interventions: Sequence[Intervention], vocabulary: Vocabulary, seed: int
    ) -> None:
        self._model = model
        self._interventions = interventions
        self._place, self._check = next(
            (i, intervention.check) for i, intervention in enumerate(interventions) if intervention.check is not None
        )
        # Keys of single tokens say nothing where the mean of several is tested.
        self._looks_back = self._check.positions != "mean" and (
            self._check.is_bounded or self._check.positions == "every"
        )
        sites = key_sites(model, self._check.keys)
        self._watched = [sites[layer].module for layer in self._check.layers]
        self._vocabulary = vocabulary
        self._generator = np.random.default_rng(seed)
        self._passes = 0
        self._nearest = np.inf
        self.passes_run = 0
        embedding = model.get_input_embeddings()
        with torch.no_grad():
            self._embedded = embedding(torch.from_numpy(vocabulary.ordinary).to(input_device(model))).float()

    @property
    def is_out_of_reach(self) -> bool:
        """Whether many passes have come near no region."""
        return self.passes_run >= _PASSES_TO_COME_NEAR and self._nearest > _FAR

    def around(self, region: int, passes: int) -> Iterator[Integers]:
        """The free tokens of sequences well inside a region, just inside and just outside, after ``passes`` more."""
        self._passes += passes
        seen: list[_Tried] = []
        inside = self._inside(region, seen)
        if inside is None:
            return
        yield inside
        for target in (1 - BESIDE, 1 + BESIDE):
            beside = self._beside(region, target, seen)
            if beside is not None:
                yield beside

    def _inside(self, region: int, seen: list[_Tried]) -> Integers | None:
        """Walks down the margin until one ends well inside."""
        for _ in range(_WALKS):
            if self._is_over:
                break
            best, stuck = self._best(self._tried(self._vocabulary.random(_BATCH, self._generator), seen), region), 0
            for _ in range(_STEPS):
                if best is None or stuck > _PATIENCE or self._is_over:
                    break
                if best.nearness[0, region] <= WELL_INSIDE and best.earlier[0] > CLEAR:
                    found: Integers = best.free[0]
                    return found
                if not stuck:
                    promising = self._promising(best.free[0], region)
                step = self._best(self._tried(self._replaced(best.free[0], promising), seen), region)
                is_better = step is not None and _depth(step, region)[0] < _depth(best, region)[0]
                best, stuck = (step, 0) if is_better else (best, stuck + 1)
        return None

    @property
    def _is_over(self) -> bool:
        return not self._passes or self.is_out_of_reach

    def _beside(self, region: int, target: float, seen: list[_Tried]) -> Integers | None:
        """Steps from what came nearest to the place beside the boundary; None for none on that side of it.

        Outside, whatever came nearest will do: where all that is refused runs alone, some graphs compute no further.
        """

        def distance(tried: _Tried) -> Floats:
            nearest = tried.nearness[:, region]
            decides = (nearest == tried.nearness.min(axis=1)) & (tried.earlier > CLEAR)
            decides &= (nearest < 1) == (target < 1)
            return np.where(decides, np.abs(nearest - target), np.inf)

        for _ in range(_STEPS_TO_BOUNDARY):
            free, away = _nearest(seen, distance)
            if away <= _NEAR_ENOUGH:
                return free
            if not self._passes or not np.isfinite(away):
                break
            self._tried(self._mutated(free), seen)
        return free if away < (BESIDE if target < 1 else np.inf) else None

    def _best(self, tried: _Tried, region: int) -> _Tried | None:
        if not len(tried.free):
            return None
        return tried.row(int(_depth(tried, region).argmin()))

    def _mutated(self, free: Integers) -> Integers:
        """Copies with one to three tokens replaced by random ones."""
        copies = np.tile(free, (_BATCH, 1))
        for number in range(3):
            rows = np.arange(0, _BATCH, number + 1)
            places = self._generator.integers(0, FREE_TOKENS, len(rows))
            copies[rows, places] = self._generator.choice(self._vocabulary.ordinary, len(rows))
        return copies

    def _replaced(self, free: Integers, promising: Integers) -> Integers:
        """Copies with one or two tokens replaced by ``promising`` ones."""
        copies = np.tile(free, (_BATCH, 1))
        for rows in (np.arange(_BATCH), np.arange(0, _BATCH, 2)):
            places = self._generator.integers(0, FREE_TOKENS, len(rows))
            choices = self._generator.integers(0, promising.shape[1], len(rows))
            copies[rows, places] = self._vocabulary.ordinary[promising[places, choices]]
        return copies

    def _promising(self, free: Integers, region: int) -> NDArray[np.int64]:
        """At each place the indices into ``ordinary`` of the replacements by which the margin falls: [free, best]."""
        leaves: list[torch.Tensor] = []

        def keep(_module: object, _arguments: object, output: torch.Tensor) -> torch.Tensor:
            leaves.append(output.detach().requires_grad_())
            return leaves[-1]

        handle = self._model.get_input_embeddings().register_forward_hook(keep)
        try:
            framed = self._vocabulary.framed(free[None])
            keys = self._decisive(self._keys(framed, with_gradient=True), framed)
        finally:
            handle.remove()
        slope = torch.from_numpy(self._check.slope(keys.detach().cpu().numpy(), region)).to(keys.device)
        (gradient,) = torch.autograd.grad(keys, leaves[0], slope)
        first = len(self._vocabulary.prefix)
        rates = gradient[0, first : first + FREE_TOKENS].float() @ self._embedded.T
        best = rates.topk(min(_BEST, rates.shape[1]), largest=False).indices
        return np.asarray(best.cpu().numpy())

    def _tried(self, free: Integers, seen: list[_Tried]) -> _Tried:
        """Read the sequences around free tokens that hold nothing private, and remember them in ``seen``."""
        free = free[~self._vocabulary.private.are_in(free)]
        if not len(free):
            return _Tried(free, np.empty((0, len(self._check.alpha))), np.empty(0))
        framed = self._vocabulary.framed(free)
        keys = self._keys(framed)
        if self._check.positions == "mean":
            keys = self._decisive(keys, framed)[:, None]
        count, tokens, dimension = keys.shape
        margins = self._check.margins(keys.cpu().numpy().reshape(-1, dimension))
        nearness = self._check.nearness_of_each(margins).reshape(count, tokens, -1)
        earlier = nearness[:, :-1].min(axis=(1, 2)) if self._looks_back else np.full(count, np.inf)
        self._nearest = min(self._nearest, float(nearness[:, -1].min()))
        tried = _Tried(free, nearness[:, -1], earlier)
        seen.append(tried)
        return tried

    def _decisive(self, keys: torch.Tensor, ids: Integers) -> torch.Tensor:
        """The keys that decide over sequences, of those of their tokens: [n, tokens, D] to [n, D]."""
        rows = zip(keys, ids.tolist(), strict=True)
        return torch.stack([own[self._check.decisive(tokens)].mean(dim=0) for own, tokens in rows])

    def _keys(self, ids: Integers, *, with_gradient: bool = False) -> torch.Tensor:
        """The keys at every token: int64 [n, tokens] to float64 [n, tokens, D]."""
        self._passes = max(0, self._passes - 1)
        self.passes_run += 1
        with torch.set_grad_enabled(with_gradient), Hooks(self._model, self._interventions) as hooks:
            run_up_to(self._model, self._watched, torch.from_numpy(ids).to(input_device(self._model)))
            return hooks.seen_by(self._place).reshape(*ids.shape, -1)


def _depth(tried: _Tried, region: int) -> Floats:
    """What a walk makes small: the nearness, and how far an earlier token is from being clear of all regions."""
    return np.asarray(tried.nearness[:, region] + np.maximum(CLEAR - tried.earlier, 0))


def _nearest(seen: Sequence[_Tried], distance: Callable[[_Tried], Floats]) -> tuple[Integers, float]:
    """The free tokens at the least distance, and that."""
    each = [distance(tried) for tried in seen]
    batch = min(range(len(each)), key=lambda index: float(each[index].min()))
    row = int(each[batch].argmin())
    return seen[batch].free[row], float(each[batch][row])
