"""Tiny Qwen2-VL, Qwen2.5-VL, Qwen3-VL and GLM-4V from config, and prompts for them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import (
    Glm4vConfig,
    Glm4vForConditionalGeneration,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2VLConfig,
    Qwen2VLForConditionalGeneration,
    Qwen3VLConfig,
    Qwen3VLForConditionalGeneration,
)

IMAGE, VIDEO, START, END, PAD = 199, 198, 197, 196, 0
FAMILIES = ("qwen2_vl", "qwen2_5_vl", "qwen3_vl", "glm4v")
PATCH = 3 * 2 * 4 * 4  # numbers of one patch: channels, frames, rows, columns

_TOWER = {"num_heads": 4, "patch_size": 4, "spatial_merge_size": 2, "temporal_patch_size": 2}
_WIDE = {**_TOWER, "hidden_size": 32, "intermediate_size": 48, "out_hidden_size": 32}


def model(family: str, *, attention: str = "sdpa", layers: int = 6, sharp: float = 2.0) -> Any:
    """A random model; ``sharp`` scales queries and keys, so that attention is far from uniform."""
    torch.manual_seed(0)
    text = {"vocab_size": 200, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": layers, "num_attention_heads": 4,
            "num_key_value_heads": 2, "max_position_embeddings": 512, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": PAD,
            "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [2, 1, 1]}}  # fmt: skip
    tokens = {
        "image_token_id": IMAGE,
        "video_token_id": VIDEO,
        "vision_start_token_id": START,
        "vision_end_token_id": END,
    }
    config: Any
    built: Any
    if family == "qwen2_vl":
        tower = {**_TOWER, "depth": 4, "embed_dim": 32, "hidden_size": 32, "mlp_ratio": 2}
        config, built = Qwen2VLConfig(text_config=text, vision_config=tower, **tokens), Qwen2VLForConditionalGeneration
    elif family == "qwen2_5_vl":
        tower = {**_WIDE, "depth": 4, "window_size": 16, "fullatt_block_indexes": [1, 3]}
        config, built = (
            Qwen2_5_VLConfig(text_config=text, vision_config=tower, **tokens),
            Qwen2_5_VLForConditionalGeneration,
        )
    elif family == "qwen3_vl":
        tower = {**_WIDE, "depth": 4, "num_position_embeddings": 16, "deepstack_visual_indexes": [0, 2]}
        config = Qwen3VLConfig(text_config={**text, "head_dim": 8}, vision_config=tower, **tokens)
        built = Qwen3VLForConditionalGeneration
    else:
        tower = {**_WIDE, "depth": 4, "image_size": 16}
        more = {
            "image_start_token_id": START,
            "image_end_token_id": END,
            "video_start_token_id": 195,
            "video_end_token_id": 194,
        }
        config = Glm4vConfig(text_config=text, vision_config=tower, **{**tokens, **more})
        built = Glm4vForConditionalGeneration
    config._attn_implementation = attention
    made = built(config).eval()
    with torch.no_grad():
        for name, parameter in made.named_parameters():
            if parameter.dim() >= 2:
                sharpened = "q_proj" in name or "k_proj" in name or "qkv" in name
                fan_in = parameter[0].numel() if "embed" not in name else parameter.shape[-1]
                parameter.normal_(0, fan_in**-0.5 * (sharp if sharpened else 1.0))
    return made


def patches(grid: Sequence[int], seed: int) -> Tensor:
    """The patches of an image or video in the order of the processor ``[t * h * w, numbers of a patch]``, the first half of
    them alike, so that there is something to merge."""
    generator = torch.Generator().manual_seed(seed)
    n = grid[0] * grid[1] * grid[2]
    pixels = torch.randn(n, PATCH, generator=generator)
    pixels[: n // 2] = pixels[0] + 0.1 * pixels[: n // 2]
    return pixels


def prompt(*parts: int | tuple[str, Sequence[int]], family: str, seed: int = 0) -> dict[str, Any]:
    """A prompt of one sample: a number is that many text tokens, ``("image", (1, h, w))`` and ``("video", (t, h, w))`` are
    vision inputs of that many patches."""
    generator = torch.Generator().manual_seed(seed)
    ids: list[int] = []
    inputs: dict[str, list[Any]] = {"image": [], "video": []}
    for number, part in enumerate(parts):
        if isinstance(part, int):
            ids += torch.randint(3, 190, (part,), generator=generator).tolist()
            continue
        kind, grid = part
        inputs[kind].append((torch.tensor(grid), patches(grid, 100 * seed + number)))
        token = VIDEO if kind == "video" and family != "glm4v" else IMAGE
        per_frame = grid[1] * grid[2] // 4
        # Qwen3-VL and GLM-4V part the frames of a video by time stamps.
        stamped = kind == "video" and family in ("qwen3_vl", "glm4v")
        runs = [per_frame] * grid[0] if stamped else [per_frame * grid[0]]
        for i, run in enumerate(runs):
            ids += ([20 + i] if stamped else []) + [START] + [token] * run + [END]
    row = torch.tensor([ids])
    kinds = 2 if family == "glm4v" and inputs["video"] else 1
    made: dict[str, Any] = {
        "input_ids": row,
        "mm_token_type_ids": (row == IMAGE).long() * kinds + (row == VIDEO).long() * 2,
    }
    for kind, suffix in (("image", ""), ("video", "_videos")):
        if inputs[kind]:
            made[f"{kind}_grid_thw"] = torch.stack([grid for grid, _ in inputs[kind]])
            made[f"pixel_values{suffix}"] = torch.cat([pixels for _, pixels in inputs[kind]])
    return made


def together(*rows: dict[str, Any]) -> dict[str, Any]:
    """One left-padded batch of prompts."""
    length = max(row["input_ids"].shape[1] for row in rows)

    def padded(name: str, fill: int = 0) -> Tensor:
        return torch.cat(
            [torch.nn.functional.pad(row[name], (length - row[name].shape[1], 0), value=fill) for row in rows]
        )

    made = {"input_ids": padded("input_ids", PAD), "mm_token_type_ids": padded("mm_token_type_ids")}
    made["attention_mask"] = torch.stack([
        (torch.arange(length) >= length - row["input_ids"].shape[1]).long() for row in rows
    ])  # fmt: skip
    for name in ("image_grid_thw", "video_grid_thw", "pixel_values", "pixel_values_videos"):
        parts = [row[name] for row in rows if name in row]
        if parts:
            made[name] = torch.cat(parts)
    return made
