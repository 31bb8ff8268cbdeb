"""Tiny random checkpoints of many architectures, each with a real byte-level tokenizer. Nothing is downloaded."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
import transformers
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from torch import nn
from transformers import AutoModelForCausalLM, PretrainedConfig, PreTrainedModel, PreTrainedTokenizerFast
from transformers.pytorch_utils import Conv1D

from tests.newer_families import NEWER

PADDING = "<|pad|>"
END_OF_TEXT = "<|endoftext|>"
PADDING_ID = 0
END_OF_TEXT_ID = 1
HEADS = 4
KEY_VALUE_HEADS = 2
LONGEST = 512
CHAT_TEMPLATE = (
    "{% for message in messages %}[{{ message['role'] }}] {{ message['content'] }}\n{% endfor %}"
    "{% if add_generation_prompt %}[assistant]{% endif %}"
)

# The random weights' scale relative to 1 / sqrt(fan in): the head's makes the greedy choice decisive.
_HEAD_GAIN = 4.0
_GAIN = 1.0
# A head tied to a large embedding would only ever repeat the last token.
_TIED_SCALE = 0.2
_NOISE = 0.1

Sizes = Mapping[str, int]
Settings = Callable[[Sizes], dict[str, Any]]


def _llama_like(sizes: Sizes) -> dict[str, Any]:
    return {
        "num_hidden_layers": sizes["layers"],
        "hidden_size": sizes["hidden"],
        "intermediate_size": sizes["width"],
        "num_attention_heads": HEADS,
        "num_key_value_heads": KEY_VALUE_HEADS,
        "max_position_embeddings": LONGEST,
    }


def _gemma_like(sizes: Sizes) -> dict[str, Any]:
    head = sizes["hidden"] // HEADS
    return {**_llama_like(sizes), "head_dim": head, "tie_word_embeddings": True}


def _gemma2_like(sizes: Sizes) -> dict[str, Any]:
    return {**_gemma_like(sizes), "query_pre_attn_scalar": sizes["hidden"] // HEADS}


def _gpt2_like(sizes: Sizes) -> dict[str, Any]:
    return {
        "n_layer": sizes["layers"],
        "n_embd": sizes["hidden"],
        "n_inner": sizes["width"],
        "n_head": HEADS,
        "n_positions": LONGEST,
    }


def _opt(sizes: Sizes) -> dict[str, Any]:
    return {
        "num_hidden_layers": sizes["layers"],
        "hidden_size": sizes["hidden"],
        "word_embed_proj_dim": sizes["hidden"],
        "ffn_dim": sizes["width"],
        "num_attention_heads": HEADS,
        "max_position_embeddings": LONGEST,
    }


def _falcon(sizes: Sizes) -> dict[str, Any]:
    return {
        "num_hidden_layers": sizes["layers"],
        "hidden_size": sizes["hidden"],
        "ffn_hidden_size": sizes["width"],
        "num_attention_heads": HEADS,
        "max_position_embeddings": LONGEST,
    }


def _bart(sizes: Sizes) -> dict[str, Any]:
    return {
        "encoder_layers": sizes["layers"],
        "decoder_layers": sizes["layers"],
        "d_model": sizes["hidden"],
        "encoder_ffn_dim": sizes["width"],
        "decoder_ffn_dim": sizes["width"],
        "encoder_attention_heads": HEADS,
        "decoder_attention_heads": HEADS,
        "max_position_embeddings": LONGEST,
        "decoder_start_token_id": END_OF_TEXT_ID,
    }


def _gptj(sizes: Sizes) -> dict[str, Any]:
    return {**_gpt2_like(sizes), "rotary_dim": sizes["hidden"] // HEADS // 2}


def _gpt_neo(sizes: Sizes) -> dict[str, Any]:
    return {
        "num_layers": sizes["layers"],
        "hidden_size": sizes["hidden"],
        "intermediate_size": sizes["width"],
        "num_heads": HEADS,
        "attention_types": [[["global"], sizes["layers"]]],
        "max_position_embeddings": LONGEST,
    }


def _with_head_size(sizes: Sizes) -> dict[str, Any]:
    return {**_llama_like(sizes), "head_dim": sizes["hidden"] // HEADS}


def _mixture(sizes: Sizes) -> dict[str, Any]:
    return {
        **_with_head_size(sizes),
        "moe_intermediate_size": sizes["width"],
        "num_experts": 4,
        "num_local_experts": 4,
        "num_experts_per_tok": 2,
    }


def _qwen2_moe(sizes: Sizes) -> dict[str, Any]:
    return {
        **_llama_like(sizes),
        "moe_intermediate_size": sizes["width"] // 2,
        "shared_expert_intermediate_size": sizes["width"],
        "num_experts": 4,
        "num_experts_per_tok": 2,
    }


def _deepseek_v3(sizes: Sizes) -> dict[str, Any]:
    """A dense layer first; its attention has heads of their own sizes."""
    sized = dict.fromkeys(("qk_rope_head_dim", "qk_nope_head_dim", "v_head_dim"), sizes["hidden"] // HEADS)
    return {
        **_llama_like(sizes),
        **sized,
        "num_key_value_heads": HEADS,
        "moe_intermediate_size": sizes["width"] // 2,
        "first_k_dense_replace": 1,
        "n_routed_experts": 8,
        "n_shared_experts": 1,
        "num_experts_per_tok": 2,
        "n_group": 2,
        "topk_group": 1,
        "q_lora_rank": None,
        "kv_lora_rank": 16,
    }


def _jamba(sizes: Sizes) -> dict[str, Any]:
    """Attention and experts in every second block."""
    every_second = {
        f"{of}_layer_{which}": number for of in ("attn", "expert") for which, number in (("period", 2), ("offset", 1))
    }
    mamba = {"mamba_d_state": 4, "mamba_expand": 2, "mamba_dt_rank": 4, "use_mamba_kernels": False}
    return {**_llama_like(sizes), **every_second, **mamba, "num_experts": 4, "num_experts_per_tok": 2}


# The configuration class of each family, and the settings that make it tiny.
_FAMILIES: Mapping[str, tuple[str, Settings]] = MappingProxyType(
    {
        "arcee": ("ArceeConfig", _llama_like),
        "bart": ("BartConfig", _bart),
        "bigbird_pegasus": ("BigBirdPegasusConfig", lambda s: {**_bart(s), "attention_type": "original_full"}),
        "blenderbot": ("BlenderbotConfig", _bart),
        "blenderbot-small": ("BlenderbotSmallConfig", _bart),
        "bloom": (
            "BloomConfig",
            # Its F is four times the hidden size.
            lambda s: {"n_layer": s["layers"], "hidden_size": s["hidden"], "n_head": HEADS},
        ),
        "codegen": ("CodeGenConfig", _gptj),
        "cohere": ("CohereConfig", lambda s: {**_llama_like(s), "logit_scale": 1.0}),
        "falcon": ("FalconConfig", _falcon),
        "gemma": ("GemmaConfig", _gemma_like),
        "gemma2": ("Gemma2Config", _gemma2_like),
        "gemma3_text": ("Gemma3TextConfig", _gemma2_like),
        "glm": ("GlmConfig", _with_head_size),
        "gpt2": ("GPT2Config", _gpt2_like),
        "gpt_bigcode": ("GPTBigCodeConfig", _gpt2_like),
        "gpt_neo": ("GPTNeoConfig", _gpt_neo),
        "gpt_neox": ("GPTNeoXConfig", _llama_like),
        "gptj": ("GPTJConfig", _gptj),
        "granite": ("GraniteConfig", lambda s: {**_llama_like(s), "residual_multiplier": 0.5, "logits_scaling": 2.0}),
        "helium": ("HeliumConfig", _with_head_size),
        "llama": ("LlamaConfig", _llama_like),
        "marian": ("MarianConfig", _bart),
        "mbart": ("MBartConfig", _bart),
        "mistral": ("MistralConfig", lambda s: {**_llama_like(s), "sliding_window": None}),
        "mpt": (
            "MptConfig",
            # Its F is four times the hidden size.
            lambda s: {"n_layers": s["layers"], "d_model": s["hidden"], "n_heads": HEADS, "max_seq_len": LONGEST},
        ),
        "nemotron": ("NemotronConfig", _llama_like),
        "olmo": ("OlmoConfig", _llama_like),
        "olmo2": ("Olmo2Config", _llama_like),
        "opt": ("OPTConfig", _opt),
        "pegasus": ("PegasusConfig", _bart),
        # optimum's exporter knows no grouped heads of phi.
        "phi": ("PhiConfig", lambda s: {**_llama_like(s), "num_key_value_heads": HEADS}),
        "phi3": ("Phi3Config", lambda s: {**_llama_like(s), "sliding_window": None}),
        "qwen2": ("Qwen2Config", _llama_like),
        "qwen3": ("Qwen3Config", _with_head_size),
        "smollm3": ("SmolLM3Config", _llama_like),
        "stablelm": ("StableLmConfig", _llama_like),
    }
)
# Mixtures of experts: the FFLs of some have no key vectors that see every token.
_MIXTURES: Mapping[str, tuple[str, Settings]] = MappingProxyType(
    {
        "deepseek_v3": ("DeepseekV3Config", _deepseek_v3),
        "gpt_oss": ("GptOssConfig", _mixture),
        "mixtral": ("MixtralConfig", _mixture),
        "olmoe": ("OlmoeConfig", _mixture),
        "qwen2_moe": ("Qwen2MoeConfig", _qwen2_moe),
        "qwen3_moe": ("Qwen3MoeConfig", _mixture),
    }
)
# Mixtures of experts that optimum's exporter does not know.
_TORCH_MIXTURES: Mapping[str, tuple[str, Settings]] = MappingProxyType(
    {
        "ernie4_5_moe": (
            "Ernie4_5_MoeConfig",
            lambda s: {
                **_llama_like(s),
                "moe_intermediate_size": s["width"] // 2,
                "moe_num_experts": 4,
                "moe_k": 2,
                "moe_num_shared_experts": 1,
                "moe_layer_start_index": 1,
            },
        ),
        "jamba": ("JambaConfig", _jamba),
        "llama4_text": (
            "Llama4TextConfig",
            lambda s: {**_mixture(s), "intermediate_size_mlp": s["width"], "interleave_moe_layer_step": 2},
        ),
    }
)
FAMILIES = tuple(sorted(_FAMILIES))
# Those that the installed transformers has, and optimum does not export.
NEWER_FAMILIES = tuple(sorted(family for family, (name, _) in NEWER.items() if hasattr(transformers, name)))
MIXTURES = tuple(sorted(_MIXTURES))
TORCH_MIXTURES = tuple(sorted(_TORCH_MIXTURES))


def tiny_checkpoint(
    family: str,
    directory: Path,
    *,
    layers: int = 4,
    hidden: int = 32,
    width: int = 96,
    vocabulary: int = 264,
    seed: int = 0,
    dtype: str = "float32",
    **settings: Any,
) -> Path:
    """Write a random checkpoint of ``family`` with its tokenizer, and return ``directory``.

    ``family``: ``FAMILIES``, ``NEWER_FAMILIES``, ``MIXTURES`` or ``TORCH_MIXTURES``. ``width`` is F, of an FFL (bloom
    and mpt have four times the hidden size); ``vocabulary`` at least 258 (the bytes, padding and end of text). The
    weights are large enough for greedy decoding to be decisive and for key vectors to differ from text to text.
    """
    tiny_model(
        family, layers=layers, hidden=hidden, width=width, vocabulary=vocabulary, seed=seed, dtype=dtype, **settings
    ).save_pretrained(directory, safe_serialization=True)
    byte_tokenizer().save_pretrained(directory)
    return directory


def tiny_model(
    family: str,
    *,
    layers: int = 4,
    hidden: int = 32,
    width: int = 96,
    vocabulary: int = 264,
    seed: int = 0,
    dtype: str = "float32",
    **settings: Any,
) -> PreTrainedModel:
    """The model that ``tiny_checkpoint`` writes, in evaluation mode. ``settings``: others of its configuration."""
    with torch.random.fork_rng(devices=[]):
        # Of what is randomised below, stacks of experts keep what transformers draws.
        torch.manual_seed(seed)
        model = AutoModelForCausalLM.from_config(_configuration(family, layers, hidden, width, vocabulary, settings))
    _randomise(model, torch.Generator().manual_seed(seed))
    return model.to(getattr(torch, dtype)).eval()  # type: ignore[no-any-return]


def tiny_width(family: str) -> int:
    """F of ``tiny_model(family)``."""
    return 128 if family in ("bloom", "mpt") else 96


def byte_tokenizer() -> PreTrainedTokenizerFast:
    """A tokenizer with one token per byte, beside padding (0) and end of text (1)."""
    vocabulary = {PADDING: PADDING_ID, END_OF_TEXT: END_OF_TEXT_ID}
    for letter in sorted(pre_tokenizers.ByteLevel.alphabet()):
        vocabulary[letter] = len(vocabulary)
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(PADDING, special=True), AddedToken(END_OF_TEXT, special=True)])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token=END_OF_TEXT,
        pad_token=PADDING,
        padding_side="left",
        model_max_length=LONGEST,
        chat_template=CHAT_TEMPLATE,
        clean_up_tokenization_spaces=False,
    )


def random_prompts(count: int, *, seed: int = 0, shortest: int = 3, longest: int = 12) -> list[list[int]]:
    """Prompts of random bytes (token ids 2 to 257), of random lengths between ``shortest`` and ``longest``."""
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.randint(shortest, longest + 1, (count,), generator=generator).tolist()
    return [torch.randint(2, 258, (length,), generator=generator).tolist() for length in lengths]


def _configuration(
    family: str, layers: int, hidden: int, width: int, vocabulary: int, others: Mapping[str, Any]
) -> PretrainedConfig:
    if vocabulary < 258:
        raise ValueError(f"a byte-level tokenizer needs 258 tokens, not {vocabulary}")
    name, settings = {**NEWER, **_FAMILIES, **_MIXTURES, **_TORCH_MIXTURES}[family]
    options: dict[str, Any] = {
        "vocab_size": vocabulary,
        "pad_token_id": PADDING_ID,
        "bos_token_id": END_OF_TEXT_ID,
        "eos_token_id": END_OF_TEXT_ID,
        "tie_word_embeddings": False,
        "attn_implementation": "eager",
    }
    options.update(settings({"layers": layers, "hidden": hidden, "width": width, "vocabulary": vocabulary}))
    options.update(others)
    configuration: PretrainedConfig = getattr(transformers, name)(**options)
    return configuration


@torch.no_grad()
def _randomise(model: PreTrainedModel, generator: torch.Generator) -> None:
    def noise(like: torch.Tensor) -> torch.Tensor:
        return torch.randn(like.shape, generator=generator)

    head = model.get_output_embeddings()
    matrices: set[int] = set()
    for module in model.modules():
        if not isinstance(module, nn.Linear | Conv1D | nn.Embedding):
            continue
        if id(module.weight) in matrices:
            continue  # a head that is tied to the embedding
        matrices.add(id(module.weight))
        if isinstance(module, nn.Embedding):
            scale = _TIED_SCALE if head is not None and module.weight is head.weight else 1.0
        else:
            fan_in = module.weight.shape[0 if isinstance(module, Conv1D) else 1]
            scale = (_HEAD_GAIN if module is head else _GAIN) / fan_in**0.5
        module.weight.copy_(scale * noise(module.weight))
    # Biases start at 0 and norms at their neutral value, whichever it is: both are varied around it.
    for parameter in model.parameters():
        if id(parameter) not in matrices:
            parameter.add_(_NOISE * noise(parameter))
