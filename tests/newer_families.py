"""Architectures that ``torch.onnx.export`` alone exports here: the configuration class of each, made tiny."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

HEADS = 4
KEY_VALUE_HEADS = 2
LONGEST = 512
# Longer than the prompts of tests, shorter than prompt and answer.
WINDOW = 8

Sizes = Mapping[str, int]
Settings = Callable[[Sizes], dict[str, Any]]


def _dense(sizes: Sizes, **others: Any) -> dict[str, Any]:
    return {
        "num_hidden_layers": sizes["layers"],
        "hidden_size": sizes["hidden"],
        "intermediate_size": sizes["width"],
        "num_attention_heads": HEADS,
        "num_key_value_heads": KEY_VALUE_HEADS,
        "max_position_embeddings": LONGEST,
        **others,
    }


def _with_head_size(sizes: Sizes, **others: Any) -> dict[str, Any]:
    return _dense(sizes, head_dim=sizes["hidden"] // HEADS, **others)


def _alternating(sizes: Sizes, first: str, second: str) -> list[str]:
    """Of every four layers the last is of another kind, as is the last of all."""
    last = sizes["layers"] - 1
    return [second if layer % 4 == 3 or layer == last else first for layer in range(sizes["layers"])]


def _windowed(sizes: Sizes, **others: Any) -> dict[str, Any]:
    kinds = _alternating(sizes, "sliding_attention", "full_attention")
    return _with_head_size(sizes, sliding_window=WINDOW, layer_types=kinds, **others)


def _gated_delta(sizes: Sizes, **others: Any) -> dict[str, Any]:
    return _with_head_size(
        sizes,
        layer_types=_alternating(sizes, "linear_attention", "full_attention"),
        linear_key_head_dim=8,
        linear_value_head_dim=8,
        linear_num_key_heads=2,
        linear_num_value_heads=4,
        **others,
    )


def _mamba(sizes: Sizes) -> dict[str, Any]:
    return {
        "mamba_n_heads": 4,
        "mamba_d_head": sizes["hidden"] // 2,
        "mamba_n_groups": 1,
        "mamba_d_state": 8,
        "mamba_expand": 2,
        "mamba_chunk_size": 16,
    }


def _nemotron_h(sizes: Sizes) -> dict[str, Any]:
    return _with_head_size(
        sizes,
        layers_block_type=[*["mamba", "mlp"] * (sizes["layers"] - 1), "attention", "mlp"],
        mamba_num_heads=4,
        mamba_head_dim=8,
        ssm_state_size=8,
        n_groups=1,
        chunk_size=16,
        expand=1,
    )


def _granite_hybrid(sizes: Sizes) -> dict[str, Any]:
    return _dense(
        sizes,
        shared_intermediate_size=sizes["width"],
        num_local_experts=0,
        num_experts_per_tok=0,
        layer_types=_alternating(sizes, "mamba", "attention"),
        **_mamba(sizes),
    )


def _gemma3_multimodal(sizes: Sizes) -> dict[str, Any]:
    text = _windowed(sizes, query_pre_attn_scalar=8, vocab_size=sizes["vocabulary"])
    return {
        "text_config": text,
        "vision_config": {
            "hidden_size": 16,
            "intermediate_size": 32,
            "num_hidden_layers": 1,
            "num_attention_heads": 2,
            "image_size": 8,
            "patch_size": 4,
        },
        "mm_tokens_per_image": 4,
    }


def _latent(sizes: Sizes) -> dict[str, Any]:
    return _dense(sizes, kv_lora_rank=8, q_lora_rank=8, qk_rope_head_dim=8, v_head_dim=8, qk_nope_head_dim=8) | {
        "num_key_value_heads": HEADS
    }


NEWER: Mapping[str, tuple[str, Settings]] = MappingProxyType(
    {
        "apertus": ("ApertusConfig", _dense),
        "apertus1p5_text": ("Apertus1p5TextConfig", _dense),
        "beam": ("BeamConfig", _dense),
        "biogpt": ("BioGptConfig", _dense),
        "cohere2": ("Cohere2Config", lambda s: _windowed(s, logit_scale=1.0)),
        "cwm": ("CwmConfig", _windowed),
        "diffllama": ("DiffLlamaConfig", _with_head_size),
        "doge": ("DogeConfig", _dense),
        "ernie4_5": ("Ernie4_5Config", _with_head_size),
        "exaone": ("ExaoneConfig", _dense),
        "exaone4": ("Exaone4Config", _windowed),
        "falcon_h1": ("FalconH1Config", lambda s: _with_head_size(s, mamba_d_ssm=64, **_mamba(s))),
        "flint": ("FlintConfig", _dense),
        "gemma3": ("Gemma3Config", _gemma3_multimodal),
        "gemma4_text": (
            "Gemma4TextConfig",
            lambda s: (
                _windowed(s, vocab_size_per_layer_input=s["vocabulary"], hidden_size_per_layer_input=8)
                | {"global_head_dim": s["hidden"] // HEADS}
            ),
        ),
        "glm4": ("Glm4Config", _with_head_size),
        "gpt_neox_japanese": ("GPTNeoXJapaneseConfig", lambda s: _dense(s, intermediate_multiple_size=3)),
        "granite_swa": ("GraniteSWAConfig", _windowed),
        "granitemoehybrid": ("GraniteMoeHybridConfig", _granite_hybrid),
        "hunyuan_v1_dense": ("HunYuanDenseV1Config", _with_head_size),
        "hyperclovax": ("HyperCLOVAXConfig", _with_head_size),
        "internlm3": ("InternLM3Config", _dense),
        "iquestcoder": ("IQuestCoderConfig", _dense),
        "jais2": ("Jais2Config", _dense),
        "lfm2": (
            "Lfm2Config",
            lambda s: _dense(s, layer_types=_alternating(s, "conv", "full_attention"), block_auto_adjust_ff_dim=False),
        ),
        "lfm3": ("Lfm3Config", lambda s: _with_head_size(s, sliding_window=WINDOW)),
        "minicpm3": ("MiniCPM3Config", _latent),
        "ministral": ("MinistralConfig", _windowed),
        "ministral3": ("Ministral3Config", _with_head_size),
        "modernbert-decoder": ("ModernBertDecoderConfig", _dense),
        "nanochat": ("NanoChatConfig", _dense),
        "nemotron_h": ("NemotronHConfig", _nemotron_h),
        "olmo3": ("Olmo3Config", _windowed),
        "olmo_hybrid": ("OlmoHybridConfig", _gated_delta),
        "persimmon": ("PersimmonConfig", lambda s: _dense(s) | {"num_key_value_heads": HEADS}),
        "qwen3_5_text": ("Qwen3_5TextConfig", _gated_delta),
        "seed_oss": ("SeedOssConfig", _with_head_size),
        "starcoder2": ("Starcoder2Config", lambda s: _dense(s, sliding_window=None)),
        "vaultgemma": ("VaultGemmaConfig", lambda s: _windowed(s, query_pre_attn_scalar=8)),
        "xglm": (
            "XGLMConfig",
            lambda s: {
                "num_layers": s["layers"],
                "d_model": s["hidden"],
                "ffn_dim": s["width"],
                "attention_heads": HEADS,
                "max_position_embeddings": LONGEST,
            },
        ),
        "youtu": ("YoutuConfig", _latent),
    }
)
