"""What the runner shows and does to cache policies, checked against plain loops: merged entries, queries, rows, surveys."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.cache.views import naive_attention
from tests.tiny_models import batch, cached, generate, llama, llava, pixels, prompt
from tokcomp import CACHE, CachePolicy, CacheView, Pipeline, Selection
from tokcomp.cache.expected_attention import ExpectedAttention
from tokcomp.cache.lookm import LookM
from tokcomp.cache.output_aware import OutputAware
from tokcomp.cache.vlcache import VLCache
from tokcomp.errors import CompatibilityError
from tokcomp.runner.arguments import cache_in
from tokcomp.types import debug_checks


@contextmanager
def watched(monkeypatch: pytest.MonkeyPatch, cls: type[CachePolicy], method: str) -> Iterator[list[CacheView]]:
    """The views that a policy is shown, and what it is shown of attention drawn at once."""
    seen: list[Any] = []
    plain = getattr(cls, method)

    def spy(self: CachePolicy, view: CacheView) -> Any:
        rows = None if view._attention_rows is None else list(view._attention_rows())
        seen.append((view, rows))
        return plain(self, view)

    with monkeypatch.context() as patch:
        patch.setattr(cls, method, spy)
        yield seen


def rotated(queries: Tensor, positions: Tensor, inv_freq: Tensor) -> Tensor:
    angle = positions[:, None, :, None] * inv_freq
    cos, sin = torch.cat([angle.cos()] * 2, -1), torch.cat([angle.sin()] * 2, -1)
    half = queries.shape[-1] // 2
    return queries * cos + torch.cat([-queries[..., half:], queries[..., :half]], -1) * sin


@torch.no_grad()
def test_queries_are_shown_as_before_their_rotation(monkeypatch: pytest.MonkeyPatch) -> None:
    model = llama(layers=2)
    rows = batch(prompt(0, 9, 6), prompt(0, 5, 3, seed=1))
    with Pipeline(cache={"name": "expected_attention", "keep_tokens": 6}).attach(model), \
            watched(monkeypatch, ExpectedAttention, "after_prefill") as seen:  # fmt: skip
        model(**rows, use_cache=True)
    view, _ = seen[0]
    layer = model.model.layers[0]
    hidden = layer.input_layernorm(model.model.embed_tokens(rows["input_ids"]))
    own = layer.self_attn.q_proj(hidden).unflatten(-1, (4, 8)).transpose(1, 2)
    torch.testing.assert_close(view.queries, own, atol=1e-4, rtol=0)
    # The rotation to the next positions, as the model itself would make it.
    inv_freq = model.model.rotary_emb.inv_freq
    positions = torch.arange(15, 18)[None].float()
    vector = torch.randn(1, 1, 1, 8)
    expected = rotated(vector.expand(1, 1, 3, 8), positions, inv_freq).mean(dim=2)
    found = (view.rotation(3)[:1] @ vector[0, 0, 0])[:, None]
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=0)


@torch.no_grad()
@pytest.mark.parametrize(("cls", "method"), [(VLCache, "survey"), (OutputAware, "after_prefill")])
def test_rows_are_those_behind_the_image(monkeypatch: pytest.MonkeyPatch, cls: type[CachePolicy], method: str) -> None:
    model = llava(sharp=2.0)
    rows = {**batch(prompt(36, 4, 6), prompt(36, 8, 3, seed=1)), "pixel_values": pixels(2)}
    with Pipeline(cache=cls.name).attach(model), watched(monkeypatch, cls, method) as seen:
        out = model(**rows, use_cache=True, output_attentions=False)
    view, chunks = seen[3]
    attention, real = torch.cat([chunk for chunk, _ in chunks], 2), torch.cat([rows for _, rows in chunks], 1)
    assert real.sum(dim=1).tolist() == [6, 3]
    assert view.after.tolist() == [6, 3]
    eager = llava(sharp=2.0, attention="eager")
    full = eager(**rows, output_attentions=True).attentions[3]
    for row in range(2):
        torch.testing.assert_close(
            attention[row][:, real[row]], full[row][:, -int(real[row].sum()) :], atol=1e-4, rtol=0
        )
    assert out.logits.shape[1] == rows["input_ids"].shape[1]


@torch.no_grad()
def test_merged_entries_stand_in_the_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    model = llava(sharp=2.0)
    inputs = {"input_ids": prompt(36, 4, 6), "pixel_values": pixels()}
    whole = cache_in(model(**inputs, use_cache=True))
    with debug_checks(), Pipeline(cache={"name": "lookm", "keep_tokens": 14}).attach(model), \
            watched(monkeypatch, LookM, "after_prefill") as seen:  # fmt: skip
        short = cache_in(model(**inputs, use_cache=True))
    for number, (before, after) in enumerate(zip(whole.layers, short.layers, strict=True)):
        selection: Selection = LookM(keep_tokens=14).after_prefill(seen[number][0])
        for head in range(2):
            keep, assign = selection.keep[0, head].tolist(), selection.assign[0, head].tolist()
            for slot, c in enumerate(keep):
                others = [p for p, own in enumerate(assign) if own == slot and p != c]
                for content, found in ((before.keys, after.keys), (before.values, after.values)):
                    own = content[0, head]
                    expected = (own[c] + sum((own[p] + own[c]) / 2 for p in others)) / (1 + len(others))
                    torch.testing.assert_close(found[0, head, slot], expected, atol=1e-5, rtol=0)


@torch.no_grad()
def test_a_row_is_seen_at_every_step(monkeypatch: pytest.MonkeyPatch) -> None:
    model = llava(sharp=2.0)
    inputs = {"input_ids": prompt(36, 4, 6), "pixel_values": pixels()}
    with Pipeline(cache={"name": "output_aware", "start": 2, "every": 2, "final_tokens": 5}).attach(model) as trace, \
            watched(monkeypatch, OutputAware, "after_step") as seen:  # fmt: skip
        generate(model, 6, **inputs)
    views = [view for view, _ in seen]
    assert [view.generated for view in views] == [1, 2, 3, 4, 5]  # asked once a step, about all layers
    assert all(view.initial.tolist() == [36] * 8 for view in views)
    assert trace.last.decode_lengths[1][0] == 48
    assert trace.last.decode_lengths[2][0] == 5 + 10 + 3
    sums = views[0].received.sum(dim=(1, 2))
    torch.testing.assert_close(sums, torch.full((8,), 4.0), atol=1e-4, rtol=0)  # one row of every query head


def test_a_policy_guided_by_text_refuses_a_prompt_without() -> None:
    model = llava(sharp=2.0)
    with Pipeline(cache="vlcache").attach(model), pytest.raises(CompatibilityError, match="cache=vlcache"):
        model(input_ids=prompt(36, 4, 0), pixel_values=pixels(), use_cache=True)


@torch.no_grad()
@pytest.mark.parametrize("name", sorted(CACHE))
def test_beams_and_a_text_turn(name: str) -> None:
    """Every policy goes through beam search and through a later turn of several tokens."""
    model = llava(sharp=2.0)
    inputs = {"input_ids": prompt(36, 4, 6), "pixel_values": pixels()}
    with debug_checks(), Pipeline(cache=name).attach(model):
        beams = generate(model, 3, **inputs, num_beams=2)
        cache = cache_in(model(**inputs, use_cache=True))
        turn = model(input_ids=prompt(0, 3, 2, seed=5), **cached(model, cache), use_cache=True)
    assert beams.sequences.shape == (1, 49)
    assert bool(turn.logits.isfinite().all())


def test_naive_attention_is_what_the_tests_compare_with() -> None:
    query, keys = torch.randn(1, 2, 4, 8), torch.randn(1, 1, 4, 8)
    expected = torch.nn.functional.scaled_dot_product_attention(query, keys, torch.eye(4)[None, None], is_causal=True)
    torch.testing.assert_close(naive_attention(query, keys).float(), expected, atol=1e-5, rtol=0)
