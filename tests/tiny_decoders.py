"""Tiny random language models of the kinds that differ in how their layers attend, and LLaVAs with such a decoder."""

from __future__ import annotations

from typing import Any

import torch
import transformers
from transformers import AutoModelForCausalLM, CLIPVisionConfig, LlavaConfig, LlavaForConditionalGeneration

from tests.tiny_models import IMAGE, PAD, roughen

LAYERS = 4
WINDOW = 9

_SIZES = {"vocab_size": 200, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": LAYERS, "num_attention_heads": 4,
          "num_key_value_heads": 2, "max_position_embeddings": 512, "bos_token_id": 1, "eos_token_id": 2,
          "pad_token_id": PAD}  # fmt: skip
_HYBRID = ["sliding_attention", "full_attention"] * (LAYERS // 2)

DECODERS: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("LlamaConfig", {}),
    "mistral, window": ("MistralConfig", {"sliding_window": WINDOW}),
    "qwen2, window from layer 2": ("Qwen2Config", {"use_sliding_window": True, "sliding_window": WINDOW,
                                                   "max_window_layers": 2}),
    "qwen3": ("Qwen3Config", {"head_dim": 16}),
    "gemma2, hybrid": ("Gemma2Config", {"head_dim": 16, "sliding_window": WINDOW, "layer_types": _HYBRID,
                                        "query_pre_attn_scalar": 24, "attn_logit_softcapping": 2.0}),
    "gemma3, two rotary tables": ("Gemma3TextConfig", {"head_dim": 16, "sliding_window": WINDOW, "layer_types": _HYBRID,
                                                       "query_pre_attn_scalar": 24}),
    "phi, partial rotary": ("PhiConfig", {"partial_rotary_factor": 0.5}),
    "phi3, window": ("Phi3Config", {"sliding_window": WINDOW}),
    "cohere2, interleaved, no rotation without window": ("Cohere2Config", {"sliding_window": WINDOW,
                                                                           "layer_types": _HYBRID}),
    "glm4, interleaved and partial": ("Glm4Config", {"head_dim": 16, "partial_rotary_factor": 0.5}),
    "smollm3, layers without rotation": ("SmolLM3Config", {"no_rope_layers": [1, 0] * (LAYERS // 2)}),
    "gpt-oss, sinks": ("GptOssConfig", {"head_dim": 16, "sliding_window": WINDOW, "layer_types": _HYBRID,
                                        "num_local_experts": 2, "num_experts_per_tok": 1,
                                        "rope_parameters": {"rope_type": "default", "rope_theta": 1e4}}),
}  # fmt: skip

EAGER_ONLY = {"gemma2, hybrid", "gpt-oss, sinks"}
"""Capped logits and sinks are not in PyTorch's fused attention."""


def text_config(name: str) -> Any:
    """The config of a tiny decoder."""
    cls, own = DECODERS[name]
    return getattr(transformers, cls)(**{**_SIZES, **own})


def language_model(name: str, *, seed: int = 0, attention: str | None = None) -> Any:
    """A causal language model."""
    torch.manual_seed(seed)
    config = text_config(name)
    model = AutoModelForCausalLM.from_config(config, attn_implementation=attention or implementation(name)).eval()
    roughen(model, 2.0)
    return model


def llava_with(name: str, *, seed: int = 0, image: int = 84) -> LlavaForConditionalGeneration:
    """A LLaVA with 36 image tokens and this decoder."""
    torch.manual_seed(seed)
    vision = CLIPVisionConfig(hidden_size=32, intermediate_size=48, num_hidden_layers=3, num_attention_heads=4,
                              image_size=image, patch_size=14, projection_dim=32)  # fmt: skip
    config = LlavaConfig(vision_config=vision, text_config=text_config(name), image_token_index=IMAGE, vision_feature_layer=-2,
                         vision_feature_select_strategy="default", image_seq_length=(image // 14) ** 2)  # fmt: skip
    config._attn_implementation = implementation(name)
    model = LlavaForConditionalGeneration(config).eval()
    roughen(model, 2.0)
    return model


def implementation(name: str) -> str:
    """The attention implementation in which a decoder runs on a CPU."""
    return "eager" if name in EAGER_ONLY else "sdpa"
