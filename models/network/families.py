"""The feed-forward layers of a PyTorch model, by the table or by structure: how to read and write them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import repeat
from weakref import WeakKeyDictionary

from torch import Tensor, nn
from transformers import PretrainedConfig, PreTrainedModel
from transformers.pytorch_utils import Conv1D

from bakeout.models.checkpoint.architectures import FAMILIES, Family
from bakeout.models.data.limits import Limits
from bakeout.models.errors import BakeoutError
from bakeout.models.network.blocks import block_number, block_path, require_one_list
from bakeout.models.network.mixtures.experts import GATED, Expert, expert_modules, experts_of
from bakeout.models.network.mixtures.routers import Router, is_expert, routers
from bakeout.models.network.structure.completeness import blocks_with_missed
from bakeout.models.network.structure.feed_forward_search import Located, dimensions, locate_feed_forwards
from bakeout.models.plan import FeedForwardModules, Layout, ModelIdentity, Routing


@dataclass(frozen=True, eq=False)
class FeedForward:
    """One feed-forward layer. Its key vector [batch, tokens, F] is the input of ``down``.

    ``gate_path``, ``up_path`` and ``down_path`` are the modules' names in the model; ``up`` is None where gate and up
    are one fused layer, and where the FFL is ungated. ``width`` is F, ``hidden`` the size of the residual stream.
    ``block``: the layer's whole block. It gives the residual stream behind it, with ``norm_after_block`` normalised.
    ``block_number`` is its place among the blocks, from the embedding upwards.
    ``residual_multiplier``: what the FFL's output is multiplied by before it is added to the residual stream (Granite;
    1 elsewhere). Some architectures (OPT) run their FFL on
    [batch * tokens, ...]: whoever hooks these modules must expect tensors without a batch dimension.
    """

    layer: int
    block: nn.Module
    block_number: int
    gate: nn.Module
    up: nn.Module | None
    down: nn.Module
    gate_path: str
    up_path: str | None
    down_path: str
    width: int
    hidden: int
    layout: Layout
    norm_after_block: bool
    residual_multiplier: float

    @property
    def modules(self) -> FeedForwardModules:
        """What a plan records of where a checkpoint keeps the layer."""
        is_transposed = isinstance(self.down, Conv1D)
        return FeedForwardModules(self.gate_path, self.down_path, self.layout, is_transposed, self.up_path)

    def pre_activation(self, gate_output: Tensor) -> Tensor:
        """The pre-activation in the output of ``gate``: [batch, tokens, F], a view."""
        return gate_output[..., : self.width]

    def with_pre_activation(self, gate_output: Tensor, pre_activation: Tensor) -> Tensor:
        """A copy of ``gate_output`` in which the pre-activation is replaced; shape and dtype stay."""
        replaced = gate_output.clone()
        view = replaced[..., : self.width]
        view.copy_(pre_activation.reshape(view.shape))
        return replaced


def feed_forward_layers(model: PreTrainedModel) -> tuple[FeedForward, ...]:
    """The FFLs of ``model``, from the embedding upwards: by the table, or by structure (``feed_forward_search``).

    Raises ``BakeoutError`` where the modules are not the plain linear layers of one width that the table promises, and
    where no structure of plain linear layers is found (quantised or adapter-wrapped ones).
    Of a mixture of experts, those that see every token, whatever their widths; it is raised where there are none.
    """
    kind = model.config.model_type
    if routers(model):
        if layers := _beside_experts(model):
            return layers
        raise BakeoutError(
            f"No feed-forward layer of this {kind!r} model sees every token: they are mixtures of experts.",
            "Use Key Space Detection, whose keys can be what the routers read (`keys: router_input`).",
        )
    family = FAMILIES.get(kind)
    if family is None:
        return _by_structure(model, kind)
    blocks = _submodule(model, family.blocks, kind)
    layers = tuple(_feed_forward(model, family, kind, index) for index in range(len(list(blocks.children()))))
    if len({(layer.width, layer.hidden) for layer in layers}) != 1:
        raise BakeoutError(
            f"The feed-forward layers of this {kind!r} model differ in width, or there are none.",
            "Use a checkpoint whose layers all have one width.",
        )
    return layers


def feed_forwards_if_any(model: PreTrainedModel) -> tuple[FeedForward, ...]:
    """As ``feed_forward_layers``; empty for a mixture of experts that has no FFL beside its experts."""
    return _beside_experts(model) if routers(model) else feed_forward_layers(model)


def text_config(model: PreTrainedModel) -> PretrainedConfig:
    """The configuration of the text decoder: a multimodal model's own one, else the model's."""
    return model.config.get_text_config()


def model_limits(model: PreTrainedModel) -> Limits:
    """The token ids and the context that a model has."""
    embeddings = model.get_input_embeddings().get_parameter("weight")
    return Limits.of_config(model.config.to_dict(), len(embeddings))


def identity(model: PreTrainedModel, digest: str) -> ModelIdentity:
    """What a plan keeps of ``model``. ``digest`` is ``weights_digest`` of its checkpoint."""
    layers = feed_forwards_if_any(model)
    routed = routers(model)
    widths = tuple(layer.width for layer in layers)
    return ModelIdentity(
        architecture=model.config.model_type,
        layers=len(layers),
        width=max(widths, default=0),
        hidden=(layers or routed)[0].hidden,
        vocabulary=text_config(model).vocab_size,
        digest=digest,
        widths=widths if len(set(widths)) > 1 else None,
        routing=_routing(model, routed) if routed else None,
        modules=tuple(layer.modules for layer in layers) if routed or model.config.model_type not in FAMILIES else None,
    )


# What was found in a model costs a forward pass, and stays as long as its modules do.
_FOUND: WeakKeyDictionary[PreTrainedModel, tuple[FeedForward, ...]] = WeakKeyDictionary()


def _by_structure(model: PreTrainedModel, kind: str) -> tuple[FeedForward, ...]:
    known = _FOUND.get(model)
    if known is None or not all(map(_is_in_place, known, repeat(model))):
        known = _FOUND[model] = _located(model, kind)
    return known


def _is_in_place(layer: FeedForward, model: PreTrainedModel) -> bool:
    try:
        return model.get_submodule(layer.gate_path) is layer.gate and model.get_submodule(layer.down_path) is layer.down
    except AttributeError:
        return False


def _located(model: PreTrainedModel, kind: str) -> tuple[FeedForward, ...]:
    layers = locate_feed_forwards(model)
    if not layers:
        raise BakeoutError(
            f"No feed-forward layer of plain linear layers was found in this {kind!r} model.",
            "Load the unquantised checkpoint with AutoModelForCausalLM, its adapters merged.",
        )
    if len({layer.block for layer in layers}) != len(layers):
        raise BakeoutError(
            f"A block of this {kind!r} model computes several feed-forward layers, or one several times.",
            "Use a model whose blocks have one feed-forward layer each, with weights of its own.",
        )
    require_one_list(layer.block for layer in layers)
    if missed := blocks_with_missed(model, layers):
        raise BakeoutError(
            f"{missed[0]} of this {kind!r} model ({len(missed)} in all) computes its feed-forward layer otherwise than "
            f"the {len(layers)} that were located.",
            "Use a model whose feed-forward layers are linear layers and element-wise operations, unwrapped.",
        )
    multiplier = float(getattr(text_config(model), "residual_multiplier", 1.0))
    return tuple(_as_feed_forward(model, index, layer, multiplier) for index, layer in enumerate(layers))


def _as_feed_forward(model: PreTrainedModel, index: int, located: Located, multiplier: float) -> FeedForward:
    return FeedForward(
        layer=index,
        block=model.get_submodule(located.block),
        block_number=block_number(located.block),
        gate=located.gate.module,
        up=located.up.module if located.up else None,
        down=located.down.module,
        gate_path=located.gate.path,
        up_path=located.up.path if located.up else None,
        down_path=located.down.path,
        width=located.down.inputs,
        hidden=located.down.outputs,
        layout=located.layout,
        norm_after_block=located.norm_after_block,
        residual_multiplier=multiplier,
    )


def experts(model: PreTrainedModel) -> tuple[Expert, ...]:
    """The experts of all mixtures, router after router: as FFLs they are counted behind ``feed_forwards_if_any``.

    None where a mixture's are of a form that is not read, or of several widths.
    """
    by_router = [experts_of(model, router) for router in routers(model)]
    every = tuple(expert for own in by_router for expert in own)
    return every if all(by_router) and len({expert.width for expert in every}) == 1 else ()


def require_experts(model: PreTrainedModel) -> tuple[Expert, ...]:
    """As ``experts``; raises ``BakeoutError`` where they are not read: transformers 5 has stacks of its own."""
    if found := experts(model):
        return found
    raise BakeoutError(
        f"The experts of this {model.config.model_type!r} model are of a form that is not read.",
        "Fit with `experts: false`, or beside transformers 4.57.",
    )


def all_widths(model: PreTrainedModel, *, with_experts: bool = True) -> list[int]:
    """F of each FFL, the experts among them, unless ``with_experts`` is false."""
    routed = experts(model) if with_experts else ()
    return [layer.width for layer in feed_forwards_if_any(model)] + [expert.width for expert in routed]


def block_numbers(model: PreTrainedModel) -> list[int]:
    """The block of each FFL, the experts among them."""
    of_layers = [layer.block_number for layer in feed_forwards_if_any(model)]
    return of_layers + [block_number(block_path(expert.router.path)) for expert in experts(model)]


def _routing(model: PreTrainedModel, routed: Sequence[Router]) -> Routing:
    read = experts(model)
    return Routing(
        tuple(router.experts for router in routed),
        routed[0].chosen,
        width=read[0].width if read else None,
        modules=expert_modules(read) if read else None,
    )


def _beside_experts(model: PreTrainedModel) -> tuple[FeedForward, ...]:
    """The FFLs of a mixture of experts that see every token: shared experts, dense layers, parallel MLPs."""
    layers: list[FeedForward] = []
    for path, module in model.named_modules():
        children = {name for name, _ in module.named_children()}
        names = next((names for names in GATED if children.issuperset(names)), None)
        if names is None or is_expert(path):
            continue
        gate, up, down = (model.get_submodule(f"{path}.{name}") for name in names)
        width, hidden = _dimensions(down, f"{path}.{names[-1]}")
        block = block_path(path)
        layers.append(
            FeedForward(
                layer=len(layers),
                block=model.get_submodule(block),
                block_number=block_number(block),
                gate=gate,
                up=up,
                down=down,
                gate_path=f"{path}.{names[0]}",
                up_path=f"{path}.{names[1]}",
                down_path=f"{path}.{names[2]}",
                width=width,
                hidden=hidden,
                layout="gated",
                norm_after_block=False,
                residual_multiplier=1.0,
            )
        )
    paths = [layer.down_path for layer in layers] + [router.path for router in routers(model)]
    require_one_list(map(block_path, paths))
    return tuple(layers)


def _feed_forward(model: PreTrainedModel, family: Family, kind: str, index: int) -> FeedForward:
    gate_path = f"{family.blocks}.{index}.{family.gate}"
    down_path = f"{family.blocks}.{index}.{family.down}"
    gate = _submodule(model, gate_path, kind)
    down = _submodule(model, down_path, kind)
    gate_in, gate_out = _dimensions(gate, gate_path)
    width, hidden = _dimensions(down, down_path)
    if (gate_in, gate_out) != (hidden, 2 * width if family.layout == "fused" else width):
        raise BakeoutError(
            f"{gate_path} ({gate_in} to {gate_out}) and {down_path} ({width} to {hidden}) do not belong together.",
            f"Use a checkpoint that keeps the shapes of {kind!r}.",
        )
    up = up_path = None
    if family.up is not None:
        up_path = f"{family.blocks}.{index}.{family.up}"
        up = _submodule(model, up_path, kind)
        if _dimensions(up, up_path) != (gate_in, gate_out):
            raise BakeoutError(
                f"{gate_path} and {up_path} do not belong together: their shapes differ.",
                f"Use a checkpoint that keeps the shapes of {kind!r}.",
            )
    return FeedForward(
        layer=index,
        block=_submodule(model, f"{family.blocks}.{index}", kind),
        block_number=index,
        gate=gate,
        up=up,
        down=down,
        gate_path=gate_path,
        up_path=up_path,
        down_path=down_path,
        width=width,
        hidden=hidden,
        layout=family.layout,
        # Some OPT checkpoints normalise as the first transformers did.
        norm_after_block=family.norm_after_block or not getattr(model.config, "do_layer_norm_before", True),
        residual_multiplier=float(getattr(model.config, "residual_multiplier", 1.0)),
    )


def _submodule(model: PreTrainedModel, path: str, kind: str) -> nn.Module:
    try:
        return model.get_submodule(path)
    except AttributeError:
        raise BakeoutError(
            f"This {kind!r} model has no module {path}.", "Load it with AutoModelForCausalLM, without adapters."
        ) from None


def _dimensions(module: nn.Module, path: str) -> tuple[int, int]:
    """Input and output width of a linear layer."""
    if (widths := dimensions(module)) is not None:
        return widths
    raise BakeoutError(
        f"{path} is a {type(module).__name__}, not a plain linear layer.",
        "Use the unquantised checkpoint, with adapters merged.",
    )
