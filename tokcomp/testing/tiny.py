"""A tiny random LLaVA, prompts and images: enough to run a strategy through the runner in a few hundredths of a second."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

__all__ = ["IMAGE", "PAD", "batch", "pixels", "prompt", "roughen", "tiny_model"]

IMAGE = 199
"""The placeholder's id."""
PAD = 0


def tiny_model(*, tower_layers: int = 5, layers: int = 8, image: int = 84, patch: int = 14, width: int = 32,
               heads: int = 4, kv_heads: int = 2, attention: str = "sdpa", seed: int = 0, sharp: float = 3.0) -> Any:  # fmt: skip
    """A LLaVA of random weights with ``(image / patch) ** 2`` tokens; ``sharp`` scales the weights of queries and keys, so that
    attention is far from uniform and selections have clear winners."""
    from transformers import AutoModelForImageTextToText, CLIPVisionConfig, LlamaConfig, LlavaConfig

    vision = CLIPVisionConfig(hidden_size=width, intermediate_size=2 * width, num_hidden_layers=tower_layers,
                              num_attention_heads=4, image_size=image, patch_size=patch, projection_dim=width)  # fmt: skip
    text = LlamaConfig(vocab_size=200, hidden_size=width, intermediate_size=2 * width, num_hidden_layers=layers,
                       num_attention_heads=heads, num_key_value_heads=kv_heads, max_position_embeddings=512,
                       bos_token_id=1, eos_token_id=2, pad_token_id=PAD)  # fmt: skip
    config = LlavaConfig(vision_config=vision, text_config=text, image_token_index=IMAGE, vision_feature_layer=-2,
                         vision_feature_select_strategy="default", image_seq_length=(image // patch) ** 2)  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        model = AutoModelForImageTextToText.from_config(config, attn_implementation=attention).eval()
        roughen(model, sharp)
    return model


@torch.no_grad()
def roughen(model: nn.Module, sharp: float) -> None:
    """Random weights of a size at which tokens and attention differ from each other."""
    for name, parameter in model.named_parameters():
        if parameter.dim() >= 2:
            parameter.normal_(0, parameter.shape[-1] ** -0.5 * (sharp if "q_proj" in name or "k_proj" in name else 1.0))


def prompt(n_image: int, before: int, after: int, *, seed: int = 0) -> Tensor:
    """Ids ``[1, before + n_image + after]`` of a prompt with one image."""
    generator = torch.Generator().manual_seed(seed)
    text = torch.randint(3, IMAGE, (before + after,), generator=generator)
    return torch.cat([text[:before], torch.full((n_image,), IMAGE), text[before:]])[None]


def pixels(n: int = 1, size: int = 84, *, seed: int = 0) -> Tensor:
    """Random images with flat regions, so that there is something to merge."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.randn(n, 3, 3, 3, generator=generator)
    image = nn.functional.interpolate(coarse, size=(size, size), mode="nearest")
    image[..., : size // 2] += 0.3 * torch.randn(n, 3, size, size // 2, generator=generator)
    return image


def batch(*rows: Tensor) -> dict[str, Any]:
    """Left-padded ``input_ids`` and ``attention_mask``."""
    length = max(row.shape[1] for row in rows)
    ids = torch.full((len(rows), length), PAD)
    mask = torch.zeros(len(rows), length, dtype=torch.long)
    for i, row in enumerate(rows):
        ids[i, length - row.shape[1] :] = row[0]
        mask[i, length - row.shape[1] :] = 1
    return {"input_ids": ids, "attention_mask": mask}
