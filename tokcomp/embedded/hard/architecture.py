"""The hard scenes' LLaVA: a CLIP tower 128 wide and a Llama 192 wide, with lookups spread over its ten layers."""

from __future__ import annotations

import torch
from torch import Tensor
from transformers import CLIPVisionConfig, GenerationConfig, LlamaConfig, LlavaConfig, LlavaForConditionalGeneration
from transformers.models.llama.modeling_llama import LlamaAttention, LlamaDecoderLayer

from tokcomp.embedded.architecture import start_vision
from tokcomp.embedded.codes import WIDTH as TOWER_WIDTH
from tokcomp.embedded.hard import vocabulary as v
from tokcomp.embedded.hard.codes import FIRST_CODE, N_CODES, SPANS, WIDTH, meanings, word_embeddings
from tokcomp.embedded.scenes import IMAGE_SIZE, PATCH_SIZE, PATCHES

VISION_LAYERS = 8
LANGUAGE_LAYERS = 10
HEADS = 6
MLP_WIDTH = 384
MAX_NEW_TOKENS = 32

BLIND_LAYERS = 2
"""The first layers read nothing of what a patch shows."""
DIGITS_FROM = 5
"""Layers before this one cannot read which digit a patch shows; colour and place they can, from `BLIND_LAYERS` on."""

_MATCHED = (("colour", "layer"), ("digit",), ("cell", "row", "column"))
"""Traits that the first three heads of a layer compare."""
_MATCH_GAIN, _COPY_GAIN = 1.1, 0.2


def configuration() -> LlavaConfig:
    """Configuration of the whole model; features are the tower's last but one layer."""
    vision = CLIPVisionConfig(
        hidden_size=TOWER_WIDTH, intermediate_size=4 * TOWER_WIDTH, projection_dim=TOWER_WIDTH,
        num_hidden_layers=VISION_LAYERS, num_attention_heads=4, image_size=IMAGE_SIZE, patch_size=PATCH_SIZE,
        hidden_act="quick_gelu",
    )  # fmt: skip
    text = LlamaConfig(
        vocab_size=len(v.WORDS), hidden_size=WIDTH, intermediate_size=MLP_WIDTH,
        num_hidden_layers=LANGUAGE_LAYERS, num_attention_heads=HEADS, num_key_value_heads=HEADS,
        max_position_embeddings=1024, tie_word_embeddings=True, rms_norm_eps=1e-5,
        rope_parameters={"rope_type": "default", "rope_theta": 100000.0},
        bos_token_id=v.WORD_IDS[v.BOS], eos_token_id=v.WORD_IDS[v.EOS], pad_token_id=v.WORD_IDS[v.PAD],
    )  # fmt: skip
    return LlavaConfig(
        vision_config=vision, text_config=text, image_token_index=v.WORD_IDS[v.IMAGE],
        vision_feature_layer=-2, vision_feature_select_strategy="default", image_seq_length=PATCHES,
        projector_hidden_act="gelu", tie_word_embeddings=True,
    )  # fmt: skip


def build_model(seed: int = 0) -> LlavaForConditionalGeneration:
    """An untrained model in its designed state; the global generator is left untouched."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = LlavaForConditionalGeneration(configuration())
        with torch.no_grad():
            model.get_input_embeddings().weight.copy_(word_embeddings())
            start_vision(model)
            generator = torch.Generator().manual_seed(seed + 3)
            for depth, layer in enumerate(model.model.language_model.layers):
                _start_plain(layer, generator)
                if depth >= BLIND_LAYERS:
                    _start_match_heads(layer.self_attn, generator)
    model.get_input_embeddings().weight.requires_grad_(False)
    seal(model)
    model.generation_config = GenerationConfig(
        bos_token_id=v.WORD_IDS[v.BOS], eos_token_id=v.WORD_IDS[v.EOS], pad_token_id=v.WORD_IDS[v.PAD],
        do_sample=False, max_new_tokens=MAX_NEW_TOKENS,
    )  # fmt: skip
    return model


def unreadable(layer: int) -> list[int]:
    """The dimensions that language layer ``layer`` neither reads nor writes."""
    if layer < BLIND_LAYERS:
        return list(range(FIRST_CODE, WIDTH))
    return list(range(WIDTH)[SPANS["digit"]]) if layer < DIGITS_FROM else []


def readers(layer: LlamaDecoderLayer) -> list[torch.nn.Linear]:
    """The matrices through which a layer reads its input."""
    attention, mlp = layer.self_attn, layer.mlp
    return [attention.q_proj, attention.k_proj, attention.v_proj, mlp.gate_proj, mlp.up_proj]


def seal(model: LlavaForConditionalGeneration) -> None:
    """Make sealed weights zero and keep them so: their gradients are cut, and zero does not decay."""
    for depth, layer in enumerate(model.model.language_model.layers):
        columns = unreadable(depth)
        if columns:
            for linear in readers(layer):
                _freeze_at_zero(linear.weight, (slice(None), columns))
            # Nor does it write there: the sum of both would show in a token's norm, which every layer sees.
            for linear in (layer.self_attn.o_proj, layer.mlp.down_proj):
                _freeze_at_zero(linear.weight, (columns,))
    projection = model.model.multi_modal_projector.linear_2
    _freeze_at_zero(projection.weight, (slice(0, FIRST_CODE),))
    _freeze_at_zero(projection.bias, (slice(0, FIRST_CODE),))


def _freeze_at_zero(weight: Tensor, where: tuple[slice | list[int], ...]) -> None:
    mask = torch.ones_like(weight, requires_grad=False)
    mask[where] = 0
    with torch.no_grad():
        weight.mul_(mask)
    masks = {weight.device: mask}

    def cut(gradient: Tensor) -> Tensor:
        if gradient.device not in masks:
            masks[gradient.device] = mask.to(gradient.device)
        return gradient * masks[gradient.device]

    weight.register_hook(cut)


def _orthogonal(rows: int, generator: torch.Generator) -> Tensor:
    matrix, _ = torch.linalg.qr(torch.randn(rows, rows, generator=generator))
    return matrix


def _start_plain(layer: LlamaDecoderLayer, generator: torch.Generator) -> None:
    """Small random queries, keys and MLP; values and outputs that undo each other."""
    attention, mlp = layer.self_attn, layer.mlp
    attention.q_proj.weight.normal_(0, 0.04, generator=generator)
    attention.k_proj.weight.normal_(0, 0.04, generator=generator)
    rotation = _orthogonal(WIDTH, generator)
    attention.v_proj.weight.copy_(0.5 * rotation)
    attention.o_proj.weight.copy_(0.12 * rotation.T)
    mlp.gate_proj.weight.normal_(0, 0.05, generator=generator)
    mlp.up_proj.weight.normal_(0, 0.05, generator=generator)
    mlp.down_proj.weight.normal_(0, 0.015, generator=generator)


def _start_match_heads(attention: LlamaAttention, generator: torch.Generator) -> None:
    """Three heads in which a word finds the patches that carry its code and copies what they show, as words.

    Keys read the codes of some traits and queries the directions that mean them, on the slow half of the rotary dimensions,
    where distance hardly matters; values read all codes, and the output writes their meanings.
    """
    width, meaning = attention.head_dim, meanings()
    # Rotary pairs dimension i with i + width/2; the slow frequencies are the later half of each.
    slow = [*range(width // 4, width // 2), *range(3 * width // 4, width)]
    for head, traits in enumerate(_MATCHED):
        codes = [dimension for trait in traits for dimension in range(WIDTH)[SPANS[trait]]]
        rows = [width * head + place for place in slow[: len(codes)]]
        span = slice(width * head, width * (head + 1))
        attention.k_proj.weight[rows] = 0
        attention.q_proj.weight[rows] = 0
        attention.k_proj.weight[rows, codes] = _MATCH_GAIN
        attention.q_proj.weight[rows] = _MATCH_GAIN * meaning[[code - FIRST_CODE for code in codes]]
        values = _orthogonal(N_CODES, generator)[:width]  # (32, 35)
        attention.v_proj.weight[span] = 0
        attention.v_proj.weight[span, FIRST_CODE:] = values
        attention.o_proj.weight[:, span] = _COPY_GAIN * (values @ meaning).T
