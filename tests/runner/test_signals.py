"""What the views of the vision stage hold, against the tower's own eager attention."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

import pytest
import torch
from torch import Tensor
from transformers import LlavaForConditionalGeneration, SiglipVisionConfig

from tests.tiny_models import llava, pixels, prompt
from tokcomp import Pipeline, Selection, Signal, Site, VisionReducer, VisionView
from tokcomp.errors import CompatibilityError

SEEN: list[VisionView] = []


class Look(VisionReducer):
    """Keeps every other token (where it acts first) and remembers what it saw."""

    needs: ClassVar[frozenset[Signal]] = frozenset(
        {Signal.KEYS, Signal.CLS_ATTENTION, Signal.UNSPLIT_ATTENTION, Signal.UNSPLIT_KEYS, Signal.CLS_TOKEN}
    )
    without_cls: ClassVar[Literal["received", "refuse"]] = "received"
    early: bool = False
    blocks: tuple[int | None, ...] = (None,)

    def sites(self, depth: int) -> tuple[Site, ...]:
        return (Site.block(1), Site.features()) if self.early else (Site.features(),)

    def looks_at(self, depth: int) -> tuple[int | None, ...]:
        return self.blocks

    def reduce(self, view: VisionView) -> Selection:
        SEEN.append(view)
        step = 2 if self.early and view.site == Site.block(1) else 1
        return Selection(keep=torch.arange(0, view.n_tokens, step).expand(view.batch_size, -1), ascending=True)


class Refuses(Look):
    """The same, but it wants a CLS token."""

    without_cls: ClassVar[Literal["received", "refuse"]] = "refuse"


def tower_without_cls(feature_layer: int = -2) -> LlavaForConditionalGeneration:
    """A LLaVA on a SigLIP tower: no CLS token."""
    config = llava().config
    vision = SiglipVisionConfig(hidden_size=32, intermediate_size=64, num_hidden_layers=5, num_attention_heads=4,
                                image_size=84, patch_size=14)  # fmt: skip
    config.vision_config, config.vision_feature_layer = vision, feature_layer
    config.vision_feature_select_strategy = "full"
    torch.manual_seed(0)
    return LlavaForConditionalGeneration(config).eval()


@torch.no_grad()
def look(model: Any, strategy: VisionReducer) -> list[VisionView]:
    """The views of one forward pass over two images, and the trace of debug checks on the way."""
    SEEN.clear()
    ids = prompt(36, 3, 4).expand(2, -1)
    with Pipeline(vision=strategy).attach(model):
        model(input_ids=ids, pixel_values=pixels(2))
    return list(SEEN)


@torch.no_grad()
def eager(model: Any, block: int, keep: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
    """Queries, keys ``[b, h, l, d]`` and hidden output of one tower block, by hand; ``keep``: patches left by block 1."""
    tower = model.model.vision_tower
    core = getattr(tower, "vision_model", tower)
    hidden = core.embeddings(pixels(2))
    if hasattr(core, "pre_layrnorm"):
        hidden = core.pre_layrnorm(hidden)
    for number, layer in enumerate(core.encoder.layers):
        normed = layer.layer_norm1(hidden)
        query, key = (part(normed).unflatten(-1, (4, -1)).transpose(1, 2)
                      for part in (layer.self_attn.q_proj, layer.self_attn.k_proj))  # fmt: skip
        hidden = layer(hidden, attention_mask=None)
        hidden = hidden[0] if isinstance(hidden, tuple) else hidden
        if number == 1 and keep is not None:
            hidden = torch.cat([hidden[:, :1], hidden[:, 1:][:, keep]], dim=1)
        if number == block:
            return query, key, hidden
    raise AssertionError(block)


def close(one: Tensor, other: Tensor) -> None:
    torch.testing.assert_close(one, other, atol=2e-5, rtol=1e-4)


def test_the_cls_row_the_keys_and_the_token_of_the_feature_layer() -> None:
    model = llava()
    (view,) = look(model, Look())
    query, key, hidden = eager(model, 3)
    rows = (query[:, :, :1] @ key.transpose(-1, -2) * 8**-0.5).softmax(-1)
    close(view.cls_attention, rows[:, :, 0, 1:])
    close(view.keys, key.mean(1)[:, 1:])
    wide_query, wide_key = (x.transpose(1, 2).flatten(2) for x in (query, key))
    close(view.unsplit_keys, wide_key[:, 1:])
    close(view.unsplit_attention, (wide_query[:, :1] @ wide_key.transpose(-1, -2) * 32**-0.5).softmax(-1)[:, 0, 1:])
    close(view.cls_token, hidden[:, 0])
    assert view.has_cls


@pytest.mark.parametrize("blocks", [(0, None), (4,), (2, 4)])
def test_other_blocks_are_looked_at_by_name(blocks: tuple[int | None, ...]) -> None:
    """Block 4 lies behind the feature layer, where only the attention runs."""
    model = llava()
    (view,) = look(model, Look(blocks=blocks))
    for block in blocks:
        seen = view if block is None else view.at(block)
        close(seen.keys, eager(model, 3 if block is None else block)[1].mean(1)[:, 1:])
    if None not in blocks:
        with pytest.raises(AttributeError, match="cls_attention"):
            _ = view.cls_attention
    with pytest.raises(LookupError, match="block 1 was not looked at"):
        view.at(1)


def test_blocks_between_the_feature_layer_and_the_last_one_that_is_looked_at_run_in_full() -> None:
    model = llava()
    model.config.vision_feature_layer = -3
    (view,) = look(model, Look(blocks=(4,)))
    close(view.at(4).keys, eager(model, 4)[1].mean(1)[:, 1:])


def test_what_was_seen_before_a_token_left_stays_with_the_others() -> None:
    model = llava()
    keep = torch.arange(0, 36, 2)
    _, view = look(model, Look(early=True, blocks=(0, None)))
    assert view.n_tokens == 18
    close(view.at(0).keys, eager(model, 0)[1].mean(1)[:, 1:][:, keep])
    query, key, _ = eager(model, 0)
    close(
        view.at(0).cls_attention,
        (query[:, :, 0, None] @ key.transpose(-1, -2) * 8**-0.5).softmax(-1)[:, :, 0, 1:][..., keep],
    )
    close(view.keys, eager(model, 3, keep)[1].mean(1)[:, 1:])


def test_without_cls_token_a_patch_has_the_attention_that_it_receives() -> None:
    model = tower_without_cls()
    (view,) = look(model, Look())
    query, key, _ = eager(model, 3)
    assert not view.has_cls
    close(view.cls_attention, (query @ key.transpose(-1, -2) * 8**-0.5).softmax(-1).mean((1, 2))[:, None])
    query, key = (x.transpose(1, 2).flatten(2) for x in (query, key))
    close(view.unsplit_attention, (query @ key.transpose(-1, -2) * 32**-0.5).softmax(-1).mean(1))
    close(view.unsplit_keys, key)


def test_a_strategy_that_wants_a_cls_token_is_refused_without() -> None:
    model = tower_without_cls()
    with pytest.raises(CompatibilityError, match="needs the attention of a CLS token, and this vision tower has none"):
        Pipeline(vision=Refuses()).attach(model).__enter__()
    with Pipeline(vision="fastervlm").attach(model) as trace, torch.no_grad():
        model(input_ids=prompt(36, 3, 4), pixel_values=pixels())
    assert trace.last.after_vision == 9
