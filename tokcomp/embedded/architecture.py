"""The embedded LLaVA: a CLIP tower, a two-layer projector and a Llama, all 128 wide."""

from __future__ import annotations

import torch
from transformers import CLIPVisionConfig, GenerationConfig, LlamaConfig, LlavaConfig, LlavaForConditionalGeneration

from tokcomp.embedded import vocabulary as v
from tokcomp.embedded.codes import WIDTH, word_embeddings
from tokcomp.embedded.scenes import GRID, IMAGE_SIZE, PATCH_SIZE, PATCHES

HEADS = 4
VISION_LAYERS = 7
LANGUAGE_LAYERS = 8

_PEAK_FREQUENCY, _SLOW_FREQUENCY = 2.8, 0.13  # radians per patch
_FREQUENCIES = WIDTH // 4  # sine and cosine on two axes
_PICKS = range(0, _FREQUENCIES // 2, 2)
"""Frequencies that local heads compare: every other one of the fast half."""
_SHARPNESS = 1.6
_LOCAL_LAYERS = 3
_AXIAL = ((1, 0), (-1, 0), (0, 1), (0, -1))
_DIAGONAL = ((1, 1), (1, -1), (-1, 1), (-1, -1))


def configuration() -> LlavaConfig:
    """Configuration of the whole model; features are the tower's last but one layer."""
    vision = CLIPVisionConfig(
        hidden_size=WIDTH,
        intermediate_size=4 * WIDTH,
        projection_dim=WIDTH,
        num_hidden_layers=VISION_LAYERS,
        num_attention_heads=HEADS,
        image_size=IMAGE_SIZE,
        patch_size=PATCH_SIZE,
        hidden_act="quick_gelu",
    )
    text = LlamaConfig(
        vocab_size=len(v.WORDS),
        hidden_size=WIDTH,
        intermediate_size=2 * WIDTH,
        num_hidden_layers=LANGUAGE_LAYERS,
        num_attention_heads=HEADS,
        num_key_value_heads=HEADS,
        max_position_embeddings=1024,
        tie_word_embeddings=True,
        bos_token_id=v.WORD_IDS[v.BOS],
        eos_token_id=v.WORD_IDS[v.EOS],
        pad_token_id=v.WORD_IDS[v.PAD],
        rms_norm_eps=1e-5,
    )
    return LlavaConfig(
        vision_config=vision,
        text_config=text,
        image_token_index=v.WORD_IDS[v.IMAGE],
        vision_feature_layer=-2,
        vision_feature_select_strategy="default",
        image_seq_length=PATCHES,
        projector_hidden_act="gelu",
        tie_word_embeddings=True,
    )


def build_model(seed: int = 0) -> LlavaForConditionalGeneration:
    """An untrained model whose word embeddings are set; the global generator is left untouched."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = LlavaForConditionalGeneration(configuration())
        with torch.no_grad():
            model.get_input_embeddings().weight.copy_(word_embeddings())
            start_vision(model)
    model.get_input_embeddings().weight.requires_grad_(False)
    model.generation_config = GenerationConfig(
        bos_token_id=v.WORD_IDS[v.BOS],
        eos_token_id=v.WORD_IDS[v.EOS],
        pad_token_id=v.WORD_IDS[v.PAD],
        do_sample=False,
        max_new_tokens=24,
    )
    return model


def _frequencies() -> torch.Tensor:
    """Radians per patch, from nearly one turn in two patches to one in four grids: (32,)."""
    steps = torch.arange(_FREQUENCIES) / (_FREQUENCIES - 1)
    return _PEAK_FREQUENCY * (_SLOW_FREQUENCY / _PEAK_FREQUENCY) ** steps


def _position_embeddings() -> torch.Tensor:
    """Sines and cosines of both axes, (144, 128): blocks sin x, cos x, sin y, cos y."""
    axis = torch.arange(GRID).float()
    y, x = torch.meshgrid(axis, axis, indexing="ij")
    angles_x, angles_y = x.reshape(-1, 1) * _frequencies(), y.reshape(-1, 1) * _frequencies()
    return 0.4 * torch.cat([angles_x.sin(), angles_x.cos(), angles_y.sin(), angles_y.cos()], 1)


def _neighbour_weights(offset: tuple[int, int]) -> tuple[torch.Tensor, torch.Tensor]:
    """Query and key weights (32, 128) of a head that attends to the patch at ``offset`` (x, y).

    Keys pick sine and cosine of 8 frequencies per axis; queries pick the same, turned by the
    angle of the offset. Their product peaks where the distance equals the offset.
    """
    head = WIDTH // HEADS
    query, key = torch.zeros(head, WIDTH), torch.zeros(head, WIDTH)
    for axis, distance in enumerate(offset):
        for place, pick in enumerate(_PICKS):
            row = axis * head // 2 + 2 * place
            sine, cosine = 2 * axis * _FREQUENCIES + pick, (2 * axis + 1) * _FREQUENCIES + pick
            turn = _frequencies()[pick] * distance
            key[row, sine] = key[row + 1, cosine] = 1
            query[row, sine], query[row, cosine] = turn.cos(), turn.sin()
            query[row + 1, cosine], query[row + 1, sine] = turn.cos(), -turn.sin()
    return _SHARPNESS * query, _SHARPNESS * key


def start_vision(model: LlavaForConditionalGeneration) -> None:
    """Start the tower so that its first layers look at neighbouring patches.

    A glyph covers about five patches; without this start the tower spends most of its training
    finding out which patches are neighbours.
    """
    tower = model.model.vision_tower
    tower = getattr(tower, "vision_model", tower)
    tower.embeddings.position_embedding.weight[1:] = _position_embeddings()
    # Local heads read the picked channels; a patch's own content there would match itself.
    picked = [block * _FREQUENCIES + pick for block in range(4) for pick in _PICKS]
    tower.embeddings.patch_embedding.weight[picked] = 0
    for depth, layer in enumerate(tower.encoder.layers):
        query, key = layer.self_attn.q_proj.weight, layer.self_attn.k_proj.weight
        if depth < _LOCAL_LAYERS:
            offsets = _DIAGONAL if depth % 2 else _AXIAL
            pairs = [_neighbour_weights(offset) for offset in offsets]
            query.copy_(torch.cat([pair[0] for pair in pairs]))
            key.copy_(torch.cat([pair[1] for pair in pairs]))
        else:
            # Similar queries and keys: patches start by attending to what resembles them.
            query.mul_(2.5)
            key.copy_(query + 0.3 * query.std() * torch.randn_like(query))
    projector = model.model.multi_modal_projector
    for linear in (projector.linear_1, projector.linear_2):
        linear.weight.normal_(0, WIDTH**-0.5)
