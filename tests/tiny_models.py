"""Tiny random models, built from config: the same classes as the real ones, no network."""

from __future__ import annotations

from typing import Any

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from tokcomp.runner.arguments import cache_name
from tokcomp.testing.tiny import IMAGE, PAD, batch, pixels, prompt, roughen
from tokcomp.testing.tiny import tiny_model as llava

__all__ = ["IMAGE", "PAD", "batch", "cached", "generate", "llama", "llava", "pixels", "prompt", "roughen"]


def llama(*, layers: int = 4, kv_heads: int = 2, attention: str = "sdpa", seed: int = 0) -> LlamaForCausalLM:
    """A plain causal language model."""
    torch.manual_seed(seed)
    config = LlamaConfig(vocab_size=200, hidden_size=32, intermediate_size=64, num_hidden_layers=layers, num_attention_heads=4,
                         num_key_value_heads=kv_heads, max_position_embeddings=512, bos_token_id=1, eos_token_id=2,
                         pad_token_id=PAD)  # fmt: skip
    config._attn_implementation = attention
    model = LlamaForCausalLM(config).eval()
    roughen(model, 3.0)
    return model


def cached(model: torch.nn.Module, cache: Any) -> dict[str, Any]:
    """The argument that hands ``cache`` to ``model``, under the name that the installed transformers gives it."""
    return {cache_name(model): cache}


def generate(model: Any, n: int = 6, **kwargs: Any) -> Any:
    """Greedy generation of exactly ``n`` tokens with logits."""
    options = {"max_new_tokens": n, "min_new_tokens": n, "do_sample": False, "return_dict_in_generate": True,
               "output_logits": True, **kwargs}  # fmt: skip
    return model.generate(**options)
