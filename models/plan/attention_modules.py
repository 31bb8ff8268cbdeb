"""Which linear layers of a model are attention's, by their names: no table of architectures tells them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Literal, get_args

from bakeout.models.plan.feed_forward_modules import Role

if TYPE_CHECKING:
    from typing_extensions import TypeIs

# What attention computes of its input, and of its heads. "qkv": queries, keys and values are one linear layer, whose
# rows are ordered as the model has them.
AttentionRole = Literal["k", "o", "q", "qkv", "v"]
# A norm's weight, or a bias.
VectorRole = Literal["vector"]
# Of the model's ends: what tokens are looked up in, what logits come from, and the one weight that is both.
EndRole = Literal["embedding", "head", "tied"]
WeightRole = Role | AttentionRole | VectorRole | EndRole

_ROLES: Mapping[str, AttentionRole] = {
    "W_pack": "qkv",
    "Wqkv": "qkv",
    "c_attn": "qkv",
    "c_proj": "o",
    "dense": "o",
    "k_proj": "k",
    "o_proj": "o",
    "out_proj": "o",
    "q_proj": "q",
    "qkv_proj": "qkv",
    "query_key_value": "qkv",
    "v_proj": "v",
}
_ATTENTION = frozenset(("attention", "attn", "self_attention", "self_attn"))


def is_of_attention(role: WeightRole) -> TypeIs[AttentionRole]:
    """Whether a weight's role is one in attention, not in an FFL."""
    return role in get_args(AttentionRole)


def is_of_an_end(role: WeightRole) -> TypeIs[EndRole]:
    """Whether a weight's role is that of an embedding, a head, or both."""
    return role in get_args(EndRole)


def attention_weight(module: str) -> tuple[int, AttentionRole] | None:
    """The block and the role of the linear layer of attention called ``module``; None for every other name.

    >>> attention_weight("model.layers.3.self_attn.q_proj")
    (3, 'q')
    """
    *path, name = module.split(".")
    while path and path[-1] in _ATTENTION:
        path.pop()
    if name not in _ROLES or len(path) in (0, module.count(".")) or not path[-1].isdecimal():
        return None
    return int(path[-1]), _ROLES[name]


def in_block(name: str) -> str:
    """A name from its block's list on, or itself: of ``model.layers.3.norm.weight``, ``layers.3.norm.weight``."""
    path = list_of_blocks(name)
    return name.removeprefix(path.rpartition(".")[0]).lstrip(".") if path else name


def list_of_blocks(module: str) -> str:
    """The list that a module's block is in: of ``model.layers.3.mlp.up_proj``, ``model.layers``."""
    parts = module.split(".")
    return ".".join(parts[: next((place for place, part in enumerate(parts) if part.isdecimal()), 0)])


def block_of(name: str) -> int | None:
    """The number of the block that a module or parameter is in; None where it is in no block."""
    return next((int(part) for part in name.split(".") if part.isdecimal()), None)
