"""Tiny random models of each counted family, and one forward pass of each under PyTorch's FLOP counter."""

from __future__ import annotations

from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import (
    CLIPVisionConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    MistralConfig,
    PreTrainedModel,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2Config,
    Qwen2VLConfig,
    Qwen2VLForConditionalGeneration,
    Qwen3Config,
    SiglipVisionConfig,
)

IMAGE_TOKEN = 95
TEXT = {"vocab_size": 96, "hidden_size": 64, "intermediate_size": 112, "num_hidden_layers": 3,
        "num_attention_heads": 8, "num_key_value_heads": 2, "pad_token_id": 0}  # fmt: skip
VISION = {"hidden_size": 48, "intermediate_size": 96, "num_hidden_layers": 4, "num_attention_heads": 4,
          "image_size": 56, "patch_size": 14}  # fmt: skip
LANGUAGE: dict[str, Any] = {"llama": LlamaConfig, "mistral": MistralConfig, "qwen2": Qwen2Config, "qwen3": Qwen3Config}


def llava(language: str = "llama", tower: str = "clip", **fields: Any) -> LlavaForConditionalGeneration:
    """A LLaVA of 16 patches; eager attention, because fused attention on CPU is invisible to the counter."""
    vision = CLIPVisionConfig(**VISION) if tower == "clip" else SiglipVisionConfig(**VISION)
    strategy = "default" if tower == "clip" else "full"
    text = LANGUAGE[language](**TEXT)
    fields = {"vision_feature_select_strategy": strategy, **fields}
    config = LlavaConfig(vision_config=vision, text_config=text, image_token_index=IMAGE_TOKEN, **fields)
    return eager(LlavaForConditionalGeneration, config)


def qwen(generation: str) -> PreTrainedModel:
    """A Qwen-VL with windows of 4 x 4 patches (2.5) or none (2)."""
    rope = {"rope_type": "default", "mrope_section": [1, 1, 2], "rope_theta": 10000.0}
    text = {**TEXT, "rope_parameters": rope}
    shared = {"patch_size": 14, "spatial_merge_size": 2, "num_heads": 4}
    ids = {"image_token_id": IMAGE_TOKEN, "video_token_id": 94, "vision_start_token_id": 93, "vision_end_token_id": 92}
    if generation == "qwen2_vl":
        vision = {**shared, "depth": 4, "embed_dim": 48, "hidden_size": 64, "mlp_ratio": 2}
        return eager(Qwen2VLForConditionalGeneration, Qwen2VLConfig(text_config=text, vision_config=vision, **ids))
    vision = {**shared, "depth": 4, "hidden_size": 48, "intermediate_size": 80, "out_hidden_size": 64,
              "window_size": 56, "fullatt_block_indexes": [3]}  # fmt: skip
    return eager(Qwen2_5_VLForConditionalGeneration, Qwen2_5_VLConfig(text_config=text, vision_config=vision, **ids))


def eager(model_class: type[PreTrainedModel], config: Any) -> Any:
    return model_class._from_config(config, attn_implementation="eager").eval()


def counted(run: Any) -> tuple[int, dict[str, int]]:
    """FLOPs of ``run()``, in all and by module name, as ``FlopCounterMode`` sees them."""
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        run()
    return counter.get_total_flops(), {name: sum(ops.values()) for name, ops in counter.get_flop_counts().items()}


def prompt(image_tokens: int, text_tokens: int) -> torch.Tensor:
    """Token ids ``[1, l]``: two text tokens, the image, the rest of the text."""
    return torch.tensor([[1, 93, *[IMAGE_TOKEN] * image_tokens, *range(2, text_tokens)]])
