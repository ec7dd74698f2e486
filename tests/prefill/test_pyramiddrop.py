"""PyramidDrop, against a loop over the paper's rule and, with its scores, against golden vectors."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from torch import Tensor, nn

from tests.golden_cases import group, listed_cases
from tokcomp.errors import CompatibilityError
from tokcomp.models.projections import query_key_of
from tokcomp.prefill.pyramiddrop import PyramidDrop
from tokcomp.testing.prefill_views import alone, kept, random_view
from tokcomp.types import PrefillView


@settings(max_examples=50, deadline=None)
@given(
    counts=st.lists(st.integers(1, 30), min_size=1, max_size=3),
    seed=st.integers(0, 2**31),
    stage=st.sampled_from([0, 1]),
)
def test_keeps_a_share_of_the_first_number(counts: list[int], seed: int, stage: int) -> None:
    strategy = PyramidDrop(layers=(2, 5), keep_ratios=(0.6, 0.27))
    view = random_view(counts, filter=strategy, seed=seed, layer=(1, 4)[stage], protected=0.1)
    selection = strategy.filter(view)
    selection.check(view.n_tokens, batch_size=len(counts), valid=view.valid)
    for row, n in enumerate(counts):
        one = alone(view, row)
        scores, must = one.attention[0].mean(0)[-1].tolist(), one.protected[0].tolist()
        k = max(1, math.trunc(int(one.initial) * (0.6, 0.27)[stage]), sum(must))
        assert kept(selection, view, row) == sorted(sorted(range(n), key=lambda j: (not must[j], -scores[j], j))[:k])


def test_tokens_leave_before_the_layers() -> None:
    assert PyramidDrop().acts_after(32) == (7, 15, 23)
    assert PyramidDrop().acts_after(8) == (1, 3, 5)
    assert PyramidDrop().acts_after(4) == (0, 1, 2)
    with pytest.raises(CompatibilityError, match="names the first of this model's 8 layers"):
        PyramidDrop(layers=(0.1,), keep_ratios=(0.5,)).acts_after(8)
    with pytest.raises(ValidationError, match="layers holds 0"):
        PyramidDrop(layers=(0, 3, 5))
    with pytest.raises(ValidationError, match="keep_ratios has 3 entries for 2 layers"):
        PyramidDrop(layers=(2, 3))
    with pytest.raises(ValidationError, match="must not rise"):
        PyramidDrop(keep_ratios=(0.5, 0.6, 0.1))


def apply_rotary_pos_emb(q: Tensor, k: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor]:
    """Rotate-half, under the name by which modeling files have it."""

    def turned(x: Tensor) -> Tensor:
        half = x.shape[-1] // 2
        return torch.cat([-x[..., half:], x[..., :half]], -1)

    cos, sin = cos[:, None], sin[:, None]
    return q * cos + turned(q) * sin, k * cos + turned(k) * sin


class Attention(nn.Module):
    """The two projections of the golden case."""

    def __init__(self, wq: Tensor, wk: Tensor, head_dim: int) -> None:
        super().__init__()
        self.head_dim, self.scaling = head_dim, head_dim**-0.5
        self.q_proj, self.k_proj = (nn.Linear(w.shape[1], w.shape[0], bias=False) for w in (wq, wk))
        self.q_proj.weight.data, self.k_proj.weight.data = wq, wk


@pytest.mark.golden
@pytest.mark.parametrize(("folder", "case"), listed_cases("pyramiddrop"))
@torch.no_grad()
def test_the_published_rule(folder: Path, case: dict) -> None:
    """Three stages with no layers in between; rows of the batch one by one, without their padding."""
    golden, params = group(folder, case["name"]), case["params"]
    ratios, start = tuple(params["ratios"][1:]), params["image_start"]
    strategy = PyramidDrop(layers=tuple(range(1, len(ratios) + 1)), keep_ratios=ratios)
    for row, mask in enumerate(golden["attention_mask"]):
        states = golden["features"][row : row + 1, mask]
        begin = start[row] if isinstance(start, list) else start
        first = params["image_len"][row] if isinstance(params["image_len"], list) else params["image_len"]
        alive = torch.arange(first)
        for stage in range(len(ratios)):
            layer = nn.Module()
            layer.input_layernorm = nn.Identity()
            layer.self_attn = Attention(golden[f"wq_{stage}"], golden[f"wk_{stage}"], params["head_dim"])
            shown = query_key_of([layer])
            assert shown is not None
            rotary = tables(states.shape[1], params["head_dim"], params["rope_theta"])
            end = params["prompt_len"][row] + len(alive)  # the last instruction token is the row before this
            query, key, scale = shown(0, states[:, :end], 1, (rotary[0][:, :end], rotary[1][:, :end]))
            key = key.repeat_interleave(query.shape[1] // key.shape[1], dim=1)
            attention = (query @ key.transpose(-1, -2) * scale).softmax(-1)[..., begin : begin + len(alive)]
            keep = strategy.filter(view_of(attention, stage, first)).keep[0]
            alive, columns = alive[keep], keep + begin
            states = torch.cat([states[:, :begin], states[:, columns], states[:, begin + attention.shape[-1] :]], dim=1)
            assert alive.tolist() == golden[f"kept_{stage}"][row].tolist()
            real = golden[f"mask_{stage}"][row]
            assert golden[f"position_ids_{stage}"][row, real].tolist() == list(range(states.shape[1]))
        torch.testing.assert_close(states[0], golden["features_out"][row, : states.shape[1]], atol=1e-4, rtol=0)


def tables(length: int, head_dim: int, theta: float) -> tuple[Tensor, Tensor]:
    angle = torch.arange(length)[:, None] / theta ** (torch.arange(0, head_dim, 2) / head_dim)
    angle = torch.cat([angle, angle], -1)[None]
    return angle.cos(), angle.sin()


def view_of(attention: Tensor, layer: int, initial: int) -> PrefillView:
    n = attention.shape[-1]
    one = random_view([n], layer=layer, depth=8)
    return replace(one, _attention=attention, _rows=torch.ones(1, 1, dtype=torch.bool), initial=torch.tensor([initial]))
