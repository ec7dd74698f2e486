"""Inside packed towers: dropping equals masking, signals are those of the formula, windows and deep features follow."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

import pytest
import torch
from torch import Tensor
from transformers.vision_utils import get_vision_window_index

from tests.models.packed_models import FAMILIES, model, patches
from tokcomp import Pipeline, Selection, VisionReducer
from tokcomp.runner.arguments import by_name
from tokcomp.types import Signal, Site, VisionView

GRIDS = [(1, 8, 12), (1, 6, 4), (1, 8, 12)]
VIDEOS = [(2, 8, 6), (3, 4, 4)]


class EveryOther(VisionReducer):
    """Keeps every other unit inside the tower."""

    at: Literal["mid", "block"] = "block"
    layer: int = 0

    def sites(self, depth: int) -> tuple[Site, ...]:
        return (Site(self.at, self.layer),)

    def reduce(self, view: VisionView) -> Selection:
        return Selection.from_mask(view.valid & (view.origin % 2 == 0))


class Pairs(EveryOther):
    """Merges every other unit with the one behind it, and lets later blocks weigh what stands for two."""

    def reduce(self, view: VisionView) -> Selection:
        keep = torch.arange(0, view.n_tokens, 2).expand(view.batch_size, -1)
        return Selection.merge(keep, view.origin // 2, ragged=False)

    def weighs_attention(self) -> bool:
        return True


class Looking(VisionReducer):
    """Keeps everything and shows what it saw."""

    needs: ClassVar[frozenset[Signal]] = frozenset({Signal.KEYS, Signal.CLS_ATTENTION, Signal.UNSPLIT_ATTENTION})
    without_cls: ClassVar[Literal["refuse", "received"]] = "received"
    seen: ClassVar[list[VisionView]] = []

    block: int = 3

    def sites(self, depth: int) -> tuple[Site, ...]:
        return (Site.block(self.block),)

    def reduce(self, view: VisionView) -> Selection:
        self.seen.append(view)
        return Selection.all(view.n_tokens, batch_size=view.batch_size)


def encode(made: Any, kind: str, grids: list[tuple[int, int, int]]) -> Any:
    pixels = torch.cat([patches(grid, seed) for seed, grid in enumerate(grids)])
    return getattr(made.model, f"get_{kind}_features")(pixels, torch.tensor(grids), return_dict=True)


def captured(made: Any, kind: str, grids: list[tuple[int, int, int]]) -> list[dict[str, Any]]:
    """What every block gets without tokcomp."""
    calls: list[dict[str, Any]] = []
    handles = [block.register_forward_pre_hook(lambda m, args, kwargs: calls.append(by_name(m, args, kwargs)), with_kwargs=True)
               for block in made.model.visual.blocks]  # fmt: skip
    encode(made, kind, grids)
    for handle in handles:
        handle.remove()
    return calls


def queries_keys_values(block: Any, hidden: Tensor, call: dict[str, Any]) -> tuple[Tensor, Tensor, Tensor]:
    """``[n, h, d]`` each, queries and keys turned."""
    q, k, v = block.attn.qkv(block.norm1(hidden)).view(hidden.shape[0], 3, block.attn.num_heads, -1).unbind(1)
    cos, sin = (table[:, None] for table in call["position_embeddings"])

    def turned(x: Tensor) -> Tensor:
        first, second = x.chunk(2, dim=-1)
        return x * cos + torch.cat([-second, first], dim=-1) * sin

    return turned(q), turned(k), v


def within(call: dict[str, Any]) -> Tensor:
    """Which patches attend to which ``[n, n]``."""
    segment = torch.repeat_interleave(torch.arange(len(call["cu_seqlens"]) - 1), call["cu_seqlens"].diff())
    return segment[:, None] == segment


def order_of(family: str, made: Any, grids: list[tuple[int, int, int]]) -> Tensor:
    """The unit (in raster order of its frame, frames one after another) at each place of the tower's sequence."""
    if family != "qwen2_5_vl":
        return torch.arange(sum(t * h * w // 4 for t, h, w in grids))
    return get_vision_window_index(torch.tensor(grids), 2, made.model.visual.window_size, 4)[0]


def evens(grids: list[tuple[int, int, int]]) -> Tensor:
    """Units that are kept: the even ones of every frame."""
    return torch.cat([torch.arange(h * w // 4) % 2 == 0 for t, h, w in grids for _ in range(t)])


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("kind", ["image", "video"])
@pytest.mark.parametrize("site", ["block", "mid"])
@pytest.mark.parametrize("reducer", [EveryOther, Pairs])
@torch.no_grad()
def test_leaving_inside_equals_masking(
    family: str, kind: str, site: Literal["block", "mid"], reducer: type[EveryOther]
) -> None:
    made = model(family)
    visual, grids = made.model.visual, GRIDS if kind == "image" else VIDEOS
    calls, alive = captured(made, kind, grids), evens(grids)
    order = order_of(family, made, grids)
    keys_alive = alive[order].repeat_interleave(4)
    heavier = torch.tensor(2.0).log() if reducer is Pairs else torch.tensor(0.0)

    def merged(hidden: Tensor) -> Tensor:
        if reducer is EveryOther:
            return hidden
        units = hidden.view(len(order), -1)[order.argsort()]
        pairs = units.view(-1, 2, units.shape[1]).mean(dim=1).repeat_interleave(2, dim=0)
        return pairs[order].view(hidden.shape)

    hidden = calls[0]["hidden_states"]
    deep = []
    for number, (block, call) in enumerate(zip(visual.blocks, calls, strict=True)):
        q, k, v = queries_keys_values(block, hidden, call)
        seen = within(call) & (keys_alive | (number <= 0))
        logits = torch.einsum("qhd,khd->hqk", q, k) * q.shape[-1] ** -0.5 + heavier * (number > 0)
        mixed = torch.einsum("hqk,khd->qhd", logits.masked_fill(~seen, -torch.inf).softmax(-1).nan_to_num(), v)
        hidden = hidden + block.attn.proj(mixed.flatten(1))
        hidden = merged(hidden) if (number, site) == (0, "mid") else hidden
        hidden = hidden + block.mlp(block.norm2(hidden))
        hidden = merged(hidden) if (number, site) == (0, "block") else hidden
        if family == "qwen3_vl" and number in visual.deepstack_visual_indexes:
            deep.append(visual.deepstack_merger_list[len(deep)](hidden))
    with Pipeline(reducer(at=site)).attach(made):
        output = encode(made, kind, grids)
    features = torch.cat(list(output.pooler_output))
    assert torch.equal(features[:, 0].isnan(), ~alive)
    reference = visual.post_layernorm(hidden) if family == "glm4v" else hidden
    if family == "glm4v":
        folded = reference.view(-1, 2, 2, reference.shape[-1]).permute(0, 3, 1, 2)
        reference = visual.downsample(folded).view(-1, visual.config.out_hidden_size)
    expected = visual.merger(reference)[order.argsort()]
    torch.testing.assert_close(features[alive], expected[alive], atol=1e-4, rtol=0)
    for ours, theirs in zip(getattr(output, "deepstack_features", []), deep, strict=True):
        torch.testing.assert_close(torch.cat(list(ours))[alive], theirs[alive], atol=1e-4, rtol=0)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("number", [2, 3])
@torch.no_grad()
def test_signals_are_those_of_the_formula(family: str, number: int) -> None:
    """Block 2 of Qwen2.5-VL attends within windows, all others within images."""
    made = model(family)
    calls = captured(made, "image", GRIDS)
    block, call = made.model.visual.blocks[number], calls[number]
    q, k, _ = queries_keys_values(block, call["hidden_states"], call)
    seen = within(call)
    Looking.seen.clear()
    with Pipeline(Looking(block=number)).attach(made):
        encode(made, "image", GRIDS)
    back = order_of(family, made, GRIDS).argsort()
    units = [h * w // 4 for _, h, w in GRIDS]

    def by_unit(x: Tensor) -> list[Tensor]:
        return list(x.unflatten(0, (-1, 4)).mean(dim=1)[back].split(units))

    rows = torch.tensor(units).repeat_interleave(torch.tensor(units)).repeat_interleave(4) * 4
    logits = torch.einsum("qhd,khd->hqk", q, k) * q.shape[-1] ** -0.5
    received = logits.masked_fill(~seen, -torch.inf).softmax(-1).mean(dim=0).sum(dim=0) / rows
    wide = q.flatten(1) @ k.flatten(1).T * q.flatten(1).shape[1] ** -0.5
    unsplit = wide.masked_fill(~seen, -torch.inf).softmax(-1).sum(dim=0) / rows
    shown = {row: (view, i) for view in Looking.seen for i, row in enumerate(view.owners)}
    assert sorted(shown) == [0, 1, 2]
    for image in range(3):
        view, i = shown[image]
        n = units[image]
        assert view.grid == (GRIDS[image][1] // 2, GRIDS[image][2] // 2)
        assert n == view.n_tokens
        torch.testing.assert_close(view.keys[i], by_unit(k.mean(dim=1))[image], atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(
            view.cls_attention[i, 0], by_unit(received[:, None])[image][:, 0], atol=1e-6, rtol=1e-4
        )
        torch.testing.assert_close(
            view.unsplit_attention[i], by_unit(unsplit[:, None])[image][:, 0], atol=1e-6, rtol=1e-4
        )
