"""The models that are timed: published sizes with random weights, which cost what trained ones do, and prompts for them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig, LlavaForConditionalGeneration

__all__ = ["CPU_SMALL", "LLAVA_7B", "LLAVA_NEXT_7B", "QWEN_DECODER_7B", "TINY", "Shape", "build", "prompt"]

IMAGE_TOKEN = 3


@dataclass(frozen=True)
class Shape:
    """Sizes of a LLaVA-like model and of its images.

    Attributes:
        name: for records.
        hidden, intermediate, layers, heads, kv_heads, vocab: the language model.
        tower_hidden, tower_layers: a CLIP tower with heads of width 64 and an MLP of four times its width.
        image_size, patch: pixels.
        tiles: tower inputs per sample; a high-resolution image is several tiles.
    """

    name: str
    hidden: int
    intermediate: int
    layers: int
    heads: int
    kv_heads: int
    vocab: int
    tower_hidden: int
    tower_layers: int
    image_size: int = 336
    patch: int = 14
    tiles: int = 1

    @property
    def tile_tokens(self) -> int:
        return (self.image_size // self.patch) ** 2

    @property
    def image_tokens(self) -> int:
        """Vision tokens of a sample."""
        return self.tiles * self.tile_tokens

    def config(self) -> LlavaConfig:
        vision = CLIPVisionConfig(
            hidden_size=self.tower_hidden, intermediate_size=4 * self.tower_hidden, num_hidden_layers=self.tower_layers,
            num_attention_heads=self.tower_hidden // 64, image_size=self.image_size, patch_size=self.patch,
            projection_dim=self.tower_hidden,
        )  # fmt: skip
        text = LlamaConfig(
            vocab_size=self.vocab, hidden_size=self.hidden, intermediate_size=self.intermediate,
            num_hidden_layers=self.layers, num_attention_heads=self.heads, num_key_value_heads=self.kv_heads,
            max_position_embeddings=32768, bos_token_id=1, eos_token_id=2, pad_token_id=0,
        )  # fmt: skip
        return LlavaConfig(
            vision_config=vision, text_config=text, image_token_index=IMAGE_TOKEN, image_seq_length=self.tile_tokens
        )


_CLIP_L = {"tower_hidden": 1024, "tower_layers": 24}
LLAVA_7B = Shape("llava-1.5-7b", 4096, 11008, 32, 32, 32, 32064, **_CLIP_L)
LLAVA_NEXT_7B = Shape("llava-next-7b (5 tiles)", 4096, 11008, 32, 32, 32, 32064, tiles=5, **_CLIP_L)
QWEN_DECODER_7B = Shape(
    "qwen2.5-vl-7b decoder, CLIP tower (5 tiles)", 3584, 18944, 28, 28, 4, 152064, tiles=5, **_CLIP_L
)
# The tower takes about the share of the FLOPs that it takes in LLaVA-1.5, 5 %.
CPU_SMALL = Shape("16 layers x 512", 512, 1408, 16, 8, 8, 1000, 128, 4)
TINY = Shape("tiny", 128, 256, 4, 2, 1, 500, 64, 3, image_size=84)


def build(shape: Shape, device: str | torch.device, dtype: torch.dtype) -> LlavaForConditionalGeneration:
    """A model of this shape with random weights, made on the device in its dtype."""
    torch.manual_seed(0)
    with torch.device(device):
        model = LlavaForConditionalGeneration._from_config(shape.config(), dtype=dtype, attn_implementation="sdpa")
    model.generation_config.eos_token_id = None  # an answer has the length that was asked for
    model.generation_config.pad_token_id = 0
    return model.to(device).eval().requires_grad_(False)


def prompt(shape: Shape, batch: int, text: int, device: str | torch.device, dtype: torch.dtype) -> dict[str, Tensor]:
    """Inputs of ``batch`` samples with different images and ``text`` text tokens each, half of them before the image."""
    generator = torch.Generator().manual_seed(0)
    words = torch.randint(4, shape.vocab, (batch, text), generator=generator)
    images = torch.full((batch, shape.image_tokens), IMAGE_TOKEN)
    ids = torch.cat([words[:, : text // 2], images, words[:, text // 2 :]], dim=1)
    pixels = torch.randn(batch * shape.tiles, 3, shape.image_size, shape.image_size, generator=generator)
    inputs: dict[str, Any] = {
        "input_ids": ids,
        "pixel_values": pixels.to(dtype),
        "attention_mask": torch.ones_like(ids),
    }
    return {name: value.to(device) for name, value in inputs.items()}
