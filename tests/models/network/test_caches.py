"""A decoder is given its cache under the name that its ``forward`` has for it."""

from __future__ import annotations

import pytest
import transformers

from bakeout.models.errors import BakeoutError
from bakeout.models.network.generation import continue_prompts
from bakeout.models.network.structure.caches import new_cache, with_cache

from tests.tiny_models import tiny_model


def test_a_decoder_is_given_its_cache() -> None:
    model = tiny_model("llama", layers=1)
    cache = new_cache(model)
    assert set(with_cache(model, cache)) in ({"cache", "use_cache"}, {"past_key_values", "use_cache"})
    assert cache in with_cache(model, cache).values()


def test_a_cache_has_the_layers_of_the_decoder() -> None:
    """What the configuration of a model of BART's kind gives as the number of layers is the encoder's."""
    settings = tiny_model("bart", layers=1).config
    settings.decoder_layers = 2
    model = transformers.AutoModelForCausalLM.from_config(settings)
    (said,) = continue_prompts(model, [[5, 6, 7]], end=frozenset(), max_new_tokens=2)
    assert len(said.ids) == 2


def test_a_model_without_a_cache_of_keys_and_values_is_refused() -> None:
    """What XLNet keeps of earlier tokens is no cache of keys and values."""
    settings = transformers.XLNetConfig(vocab_size=264, d_model=32, n_layer=1, n_head=4, d_inner=96)
    model = transformers.AutoModelForCausalLM.from_config(settings)
    with pytest.raises(BakeoutError, match=r"'xlnet' model takes no cache: .* neither cache nor past_key_values"):
        with_cache(model, transformers.DynamicCache())
