"""What of a mixture of experts sees every token: FFLs beside the experts, and routers."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from transformers import PreTrainedModel

from bakeout.models.checkpoint.checkpoint_files import load_model
from bakeout.models.checkpoint.placement import Placement
from bakeout.models.data.rows import Record
from bakeout.models.errors import BakeoutError
from bakeout.models.network.families import experts, feed_forward_layers, feed_forwards_if_any, identity
from bakeout.models.network.key_sites import key_sites
from bakeout.models.network.mixtures.expert_probing import probe_mixture, probe_mixture_magnitudes
from bakeout.models.network.mixtures.routers import routers
from bakeout.models.network.probing import probe_keys
from bakeout.models.network.statistics import Moments
from bakeout.models.network.token_keys import reduced_token_keys
from bakeout.models.plan import Keys, PlanError

from tests.conftest import CheckpointOf
from tests.tiny_models import MIXTURES, TORCH_MIXTURES, random_prompts, tiny_model

PROMPTS = random_prompts(6, seed=5)
# The widths of the FFLs that see every token, and how many routers of how many experts there are.
BESIDE = {
    "deepseek_v3": (96, 48, 48, 48),
    "ernie4_5_moe": (96, 48, 48, 48),
    "jamba": (96, 96),
    "llama4_text": (96, 96, 96, 96),
    "qwen2_moe": (96, 96, 96, 96),
}
# Transformers 5 holds the experts of the others in stacks that are not read.
STACKED = ("gpt_oss", "llama4_text")
READ = STACKED if transformers.__version__.startswith("5.") else MIXTURES + TORCH_MIXTURES
ROUTED = {"deepseek_v3": (8, 8, 8), "ernie4_5_moe": (4, 4, 4), "jamba": (4, 4), "llama4_text": (4, 4)}


@pytest.mark.parametrize("family", MIXTURES + TORCH_MIXTURES)
def test_an_identity_counts_what_sees_every_token(family: str) -> None:
    model = tiny_model(family)
    known = identity(model, "")
    assert [known.width_of(layer) for layer in range(known.layers)] == list(BESIDE.get(family, ()))
    assert known.routing is not None
    assert known.routing.experts == ROUTED.get(family, (4, 4, 4, 4))
    assert (known.routing.chosen, known.hidden) == (2, 32)
    assert all(
        "experts." not in layer.down_path.replace("shared_experts.", "") for layer in feed_forwards_if_any(model)
    )
    # In whatever a family calls its FFLs, they are known to be in their blocks.
    blocks = model.get_submodule("model.layers")
    for layer, site in zip(feed_forwards_if_any(model), key_sites(model), strict=True):
        assert layer.block is list(blocks.children())[site.block]


@pytest.mark.parametrize("family", MIXTURES)
@pytest.mark.parametrize("keys", ["router_input", "router_logits"])
def test_probed_router_keys_are_those_that_route(family: str, keys: Keys) -> None:
    model = tiny_model(family)
    layer = len(routers(model)) - 1
    probed = probe_keys(model, PROMPTS, layers=[layer], keys=keys, batch_size=4)[layer]
    every = reduced_token_keys(lambda rows: rows.copy(), model, PROMPTS, layers=[layer], keys=keys, batch_size=4)
    for prompt, last, tokens in zip(PROMPTS, probed, every, strict=True):
        seen = _seen(model, layer, prompt)
        expected = seen["input"] if keys == "router_input" else seen["logits"]
        np.testing.assert_allclose(last, expected[-1], rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(tokens, expected, rtol=1e-4, atol=1e-5)


def _seen(model: PreTrainedModel, layer: int, prompt: list[int]) -> dict[str, Any]:
    """What the router of a layer reads, and its logits as its own formula has them."""
    module = routers(model)[layer].module
    seen: dict[str, Any] = {}

    def keep(_module: object, arguments: tuple[Any, ...], _output: object) -> None:
        inputs = arguments[0].reshape(-1, 32)
        bias = getattr(module, "bias", None)
        logits = inputs @ module.get_parameter("weight").T
        seen.update(input=inputs.numpy(), logits=(logits if bias is None else logits + bias).numpy())

    handle = module.register_forward_hook(keep)
    with torch.no_grad():
        model(input_ids=torch.tensor([prompt]))
    handle.remove()
    return seen


def test_shared_experts_are_probed_like_any_feed_forward_layer() -> None:
    model = tiny_model("qwen2_moe")
    seen: list[Any] = []
    down = model.get_submodule("model.layers.2.mlp.shared_expert.down_proj")
    handle = down.register_forward_pre_hook(lambda _module, arguments: seen.append(arguments[0]))
    with torch.no_grad():
        model(input_ids=torch.tensor([PROMPTS[0]]))
    handle.remove()
    probed = probe_keys(model, PROMPTS[:1], layers=[2])[2]
    np.testing.assert_allclose(probed[0], seen[0].reshape(-1, 96)[-1].numpy(), rtol=1e-5, atol=1e-6)


def test_a_mixture_without_a_shared_expert_is_refused_where_key_vectors_are_needed() -> None:
    model = tiny_model("mixtral")
    with pytest.raises(BakeoutError, match="sees every token"):
        feed_forward_layers(model)
    with pytest.raises(BakeoutError, match="no layer 0"):
        probe_keys(model, PROMPTS, layers=[0])


def test_a_plan_for_other_routers_does_not_fit() -> None:
    known = identity(tiny_model("qwen2_moe"), "")
    widths = [known.width_of(layer) for layer in range(known.layers)]
    known.require_shape(widths=widths, hidden=known.hidden, experts=(4, 4, 4, 4))
    for others in ((4, 4, 4), (4, 4, 4, 8), ()):
        with pytest.raises(PlanError, match="routers"):
            known.require_shape(widths=widths, hidden=known.hidden, experts=others)
    assert known.watched_width("router_logits", 3) == 4
    with pytest.raises(PlanError, match="router 4"):
        known.watched_width("router_input", 4)


@pytest.mark.parametrize("family", READ)
def test_experts_are_read_and_changed_in_whatever_form_they_are(family: str) -> None:
    model = tiny_model(family)
    known, every = identity(model, ""), experts(model)
    assert known.feed_forwards == known.layers + len(every)
    assert known.name_of(known.layers + known.routing.experts[0]) == "router 1, expert 0"  # type: ignore[union-attr]
    ids = torch.tensor([PROMPTS[0]])
    with torch.no_grad():
        before = model(input_ids=ids).logits
        unchanged = [expert.changed_by(lambda values: values.clone()) for expert in every]
        # The same operations, expert by expert.
        assert torch.equal(model(input_ids=ids).logits, before)
        # Of all, since no expert is sure to be sent one of the tokens.
        changed = [expert.changed_by(torch.zeros_like) for expert in every]
        assert not torch.equal(model(input_ids=ids).logits, before)
        for handle in (*changed, *unchanged):
            handle.remove()
        assert torch.equal(model(input_ids=ids).logits, before)


@pytest.mark.skipif("mixtral" not in READ, reason="these experts are in stacks")
def test_one_expert_of_another_form_leaves_none_to_be_read() -> None:
    """The numbers of those behind it would be those of other experts."""

    class Other(torch.nn.Linear):
        pass

    model = tiny_model("mixtral")
    model.get_submodule("model.layers.1.block_sparse_moe.experts.2").w1 = Other(32, 96, bias=False)
    known = identity(model, "")
    assert experts(model) == ()
    assert known.routing is not None
    assert (known.routing.width, known.feed_forwards) == (None, 0)


@pytest.mark.parametrize("family", sorted({"deepseek_v3", "gpt_oss", "llama4_text", "mixtral"} & set(READ)))
def test_experts_are_probed_on_the_tokens_that_are_sent_to_them(family: str) -> None:
    model = tiny_model(family)
    records = [Record("", "", prompt[:2], prompt[2:]) for prompt in PROMPTS]
    seeing, every = len(feed_forwards_if_any(model)), experts(model)
    seen: list[list[torch.Tensor]] = [[] for _ in every]

    def keep(place: int) -> Callable[[torch.Tensor], torch.Tensor]:
        return lambda values: (seen[place].append(values), values)[1]  # type: ignore[func-returns-value]

    handles = [expert.changed_by(keep(place)) for place, expert in enumerate(every)]
    with torch.no_grad():
        for prompt in PROMPTS:
            model(input_ids=torch.tensor([prompt]))
    for handle in handles:
        handle.remove()
    probed = probe_mixture(model, records, scope="all", batch_size=4)
    assert probed.tokens == sum(map(len, PROMPTS))
    for moments, rows in zip(probed.layers[seeing:], seen, strict=True):
        values = Moments.of(torch.cat(rows).double().numpy())
        if family == "llama4_text":
            # It computes all tokens, and multiplies those that are not sent to an expert by 0.
            assert 0 < moments.count < values.count
            continue
        assert moments.count == values.count
        np.testing.assert_allclose(moments.mean, values.mean, rtol=1e-3, atol=1e-4)
        np.testing.assert_allclose(moments.m2, values.m2, rtol=1e-3, atol=1e-4)
    # Of the answers alone there are fewer.
    answers = probe_mixture(model, records, scope="answer", batch_size=4)
    assert sum(moments.count for moments in answers.layers) < sum(moments.count for moments in probed.layers)


@pytest.mark.parametrize("family", sorted({"gpt_oss", "mixtral"} & set(READ)))
def test_experts_are_read_as_earlier_changes_leave_them(family: str) -> None:
    model = tiny_model(family)
    records = [Record("", "", prompt[:2], prompt[2:]) for prompt in PROMPTS]
    changes: list[Callable[[torch.Tensor], torch.Tensor]] = [lambda values: 2 * values, lambda values: values - 3]
    handles = [expert.changed_by(change) for change in changes for expert in experts(model)]
    # The first router's experts: what is sent to the others changes too.
    own = slice(experts(model)[-1].router.experts)
    twice, keys = probe_mixture(model, records), probe_mixture_magnitudes(model, records)
    for handle in handles:
        handle.remove()
    before, keys_before = probe_mixture(model, records), probe_mixture_magnitudes(model, records)
    for first, then in zip(before.layers[own], twice.layers[own], strict=True):
        assert first.count == then.count
        if first.count:
            np.testing.assert_allclose(then.mean, 2 * first.mean - 3, rtol=1e-4, atol=1e-4)
    assert not any(np.allclose(a, b) for a, b in zip(keys.layers[own], keys_before.layers[own], strict=True) if a.any())


@pytest.fixture(scope="module")
def offloaded(checkpoint_of: CheckpointOf) -> Callable[[str], PreTrainedModel]:
    """``offloaded(family)``: its checkpoint, half of it on the disk."""
    places = {f"model.layers.{number}": "disk" if number in (1, 2) else "cpu" for number in range(4)}
    others = ("model.embed_tokens", "model.norm", "model.rotary_emb", "lm_head")
    device_map = places | dict.fromkeys(others, "cpu")
    return lambda family: load_model(checkpoint_of(family), Placement(dtype="float32", device_map=device_map))


@pytest.mark.skipif("mixtral" not in READ, reason="transformers 5 holds these experts in stacks, which are not read")
def test_offloaded_experts_are_probed_as_those_in_memory(
    checkpoint_of: CheckpointOf, offloaded: Callable[[str], PreTrainedModel]
) -> None:
    records = [Record("", "", prompt[:2], prompt[2:]) for prompt in PROMPTS]
    models = (load_model(checkpoint_of("mixtral")), offloaded("mixtral"))
    for own, other in zip(*(probe_mixture(model, records).layers for model in models), strict=True):
        np.testing.assert_array_equal(own.mean, other.mean)
        np.testing.assert_array_equal(own.m2, other.m2)
    for keys, others in zip(*(probe_mixture_magnitudes(model, records).layers for model in models), strict=True):
        np.testing.assert_array_equal(keys, others)


@pytest.mark.parametrize(
    "read",
    [
        lambda model: probe_mixture(model, [Record("", "", prompt[:2], prompt[2:]) for prompt in PROMPTS]),
        lambda model: [expert.changed_by(torch.zeros_like) for expert in experts(model)],
        lambda model: probe_keys(model, PROMPTS, layers=[1], keys="router_logits"),
    ],
)
def test_offloaded_weights_that_only_their_module_can_read_are_refused(
    read: Callable[[PreTrainedModel], object], offloaded: Callable[[str], PreTrainedModel]
) -> None:
    model = offloaded("gpt_oss")
    with pytest.raises(BakeoutError, match=r"model.layers.1.mlp is a mixture of experts, and offloaded"):
        read(model)


def test_a_forward_pass_of_the_modules_own_is_restored() -> None:
    """Accelerate gives modules one."""
    model = tiny_model("gpt_oss")
    module: Any = model.get_submodule("model.layers.0.mlp.experts")
    own = module.forward = partial(type(module).forward, module)
    experts(model)[0].changed_by(torch.zeros_like).remove()
    assert module.forward is own
