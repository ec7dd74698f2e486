"""Position ids with planes (multimodal rotary positions): closing up, decoding and rotating cached keys."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from transformers import Glm4vTextConfig, Glm4vTextModel, Qwen2_5_VLTextConfig, Qwen3VLTextConfig, Qwen3VLTextModel
from transformers.models.qwen2_5_vl.modeling_qwen2_5_vl import Qwen2_5_VLTextModel

from tokcomp import Pipeline
from tokcomp.errors import UnsupportedError
from tokcomp.models.adapter import find_adapter
from tokcomp.runner.apply import renumber
from tokcomp.runner.arguments import cache_in, cache_name
from tokcomp.runner.positions import close_up, in_planes, next_after, take_columns

COMMON = {"vocab_size": 100, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3, "num_attention_heads": 4,
          "num_key_value_heads": 2, "max_position_embeddings": 256}  # fmt: skip
MODELS: dict[str, Any] = {
    "qwen2.5": (Qwen2_5_VLTextModel, Qwen2_5_VLTextConfig, [2, 1, 1]),
    "qwen3": (Qwen3VLTextModel, Qwen3VLTextConfig, [2, 1, 1]),
    "glm4v": (Glm4vTextModel, Glm4vTextConfig, [1, 2, 1]),
}


def model(name: str) -> Any:
    torch.manual_seed(0)
    cls, config, sections = MODELS[name]
    rope = {"rope_type": "default", "rope_theta": 1000.0, "mrope_section": sections}
    extra = {"head_dim": 8} if name == "qwen3" else {}
    return cls(config(**COMMON, **extra, rope_parameters=rope, pad_token_id=0)).eval()


def image_positions(before: int, rows: int, columns: int, after: int, *, frames: int = 1, gap: int = 1) -> Tensor:
    """``[3, 1, l]`` as the model's own numbering gives them, written out."""
    own = [(i, i, i) for i in range(before)]
    own += [
        (before + gap * t, before + r, before + c) for t in range(frames) for r in range(rows) for c in range(columns)
    ]
    start = before + max(rows, columns)
    own += [(start + i,) * 3 for i in range(after)]
    return torch.tensor(own).T[:, None]


def naive(positions: Tensor, used: Tensor, kept: Tensor) -> list[list[tuple[int, ...]]]:
    """The rule of ``close_up`` in words: subtract how many smaller values have lost their last token."""
    result = []
    for row in range(used.shape[0]):
        columns = [tuple(c) for c in positions[:, row].T.tolist()]
        had = {v for c, u in zip(columns, used[row], strict=True) if u for v in c}
        has = {v for c, k in zip(columns, kept[row], strict=True) if k for v in c}
        result.append([tuple(v - sum(g < v for g in had - has) for v in c) for c in columns])
    return result


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 2**31), length=st.integers(1, 9), planes=st.integers(1, 3))
def test_closing_up_equals_the_rule_in_words(seed: int, length: int, planes: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    positions = torch.randint(0, 12, (planes, 2, length), generator=generator)
    used = torch.rand(2, length, generator=generator) < 0.8
    kept = used & (torch.rand(2, length, generator=generator) < 0.6)
    until = torch.randint(0, 14, (2,), generator=generator)
    moved, lag = close_up(positions, used, kept, until)
    for row, expected in enumerate(naive(positions, used, kept)):
        ours = [tuple(c) for c in moved[:, row].T.tolist()]
        assert [c for c, k in zip(ours, kept[row], strict=True) if k] == [
            c for c, k in zip(expected, kept[row], strict=True) if k
        ]
        had, has = (set(positions[:, row][:, m[row]].flatten().tolist()) for m in (used, kept))
        assert int(lag[row]) == sum(value < int(until[row]) for value in had - has)


def test_a_single_plane_is_numbered_as_ever_and_nothing_dropped_changes_nothing() -> None:
    positions = torch.arange(9).expand(1, 2, 9)
    used = torch.ones(2, 9, dtype=torch.bool)
    kept = torch.tensor([[1, 1, 0, 0, 1, 0, 1, 1, 1], [1, 0, 1, 0, 1, 0, 1, 0, 1]]).bool()
    moved, lag = close_up(positions, used, kept, torch.full((2,), 9))
    assert torch.equal(moved[0][kept], renumber(kept)[kept])
    assert lag.tolist() == [3, 4]
    video = image_positions(3, 2, 4, 4, frames=3, gap=50)
    every = torch.ones(1, video.shape[2], dtype=torch.bool)
    same, none = close_up(video, every, every, next_after(video))
    assert torch.equal(same, video)
    assert none.tolist() == [0]


def test_text_follows_the_image_that_is_left() -> None:
    positions = image_positions(2, 4, 6, 3)
    every = torch.ones(1, positions.shape[2], dtype=torch.bool)
    kept = every.clone()
    kept[0, 2 : 2 + 24] = False
    kept[0, [2 + 6 + 1, 2 + 6 + 4, 2 + 18 + 1]] = True  # (row, column): (1, 1), (1, 4), (3, 1)
    moved, lag = close_up(positions, every, kept, next_after(positions))
    # Of the numbers 2..7 of the image 4 and 7 lost their last token: rows 3, 3, 5 and columns 3, 6, 3 close up.
    assert moved[:, 0, kept[0]].T.tolist() == [
        [0] * 3,
        [1] * 3,
        [2, 3, 3],
        [2, 3, 5],
        [2, 4, 3],
        *([v] * 3 for v in (6, 7, 8)),
    ]
    assert lag.tolist() == [2]


def test_what_a_model_is_called_with() -> None:
    three, flat = torch.arange(12).view(3, 2, 2), torch.arange(4).view(2, 2)
    assert in_planes(flat, 1) is flat
    assert torch.equal(in_planes(flat, 3), flat.expand(3, 2, 2))
    assert torch.equal(in_planes(torch.cat([flat[None], three]), 3), three)
    assert torch.equal(in_planes(flat[None], 3), flat.expand(3, 2, 2))
    assert torch.equal(
        take_columns(three, torch.tensor([[1], [0]])), torch.tensor([[[1], [2]], [[5], [6]], [[9], [10]]])
    )
    with pytest.raises(UnsupportedError, match=r"shape \(3, 2, 2\) do not fit: this decoder takes \[batch, length\]"):
        in_planes(three, 1)


def keys_at(text: Any, embeds: Tensor, positions: Tensor) -> Tensor:
    """First layer's keys of embeddings ``[1, l, d]`` at ``positions`` ``[3, 1, l]``, by the model itself."""
    return cache_in(text(inputs_embeds=embeds, position_ids=positions, use_cache=True)).layers[0].keys


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("numbering", ["rerotate", "renumber", "keep"])
@torch.no_grad()
def test_keys_are_where_the_closed_up_positions_put_them(name: str, numbering: str) -> None:
    """Sinks and recent entries of a prompt with an image; then two more tokens, one at a time."""
    text = model(name)
    positions = image_positions(4, 3, 4, 5)
    length = positions.shape[2]
    embeds = torch.randn(1, length, 32)
    later = torch.randn(1, 2, 32)
    policy = {"name": "streaming_llm", "sinks": 6, "recent_tokens": 8, "positions": numbering}
    with Pipeline(cache=policy).attach(text):
        out = text(inputs_embeds=embeds, position_ids=positions, use_cache=True)
        cache = cache_in(out)
        held = [cache.layers[0].keys]
        for i in range(2):
            at = next_after(positions).view(1, 1, 1) + i
            text(inputs_embeds=later[:, i : i + 1], position_ids=at.expand(3, 1, 1), **{cache_name(text): cache})
            held.append(cache.layers[0].keys)
    columns = list(range(length))
    planes = [tuple(c) for c in positions[:, 0].T.tolist()]
    every = torch.cat([embeds, later], dim=1)
    following = int(next_after(positions))
    rotated = list(planes)  # where keys stay as they are, what they were first rotated at
    for step, keys in enumerate(held):
        if step:
            columns.append(length + step - 1)
            planes.append((following,) * 3)
            rotated.append((following,) * 3)
            following += 1
        stay = [*range(6), *range(len(columns) - 8, len(columns))]
        gone = {v for c in planes for v in c} - {v for i in stay for v in planes[i]}
        columns, rotated = [columns[i] for i in stay], [rotated[i] for i in stay]
        planes = [planes[i] for i in stay]
        if numbering != "keep":
            planes = [tuple(v - sum(g < v for g in gone) for v in c) for c in planes]
            following -= sum(g < following for g in gone)
        where = torch.tensor(planes if numbering == "rerotate" else rotated).T[:, None]
        torch.testing.assert_close(keys, keys_at(text, every[:, columns], where), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", MODELS)
def test_the_decoder_tells_how_it_turns(name: str) -> None:
    decoder = find_adapter(model(name)).decoder
    assert decoder.planes == 3
    assert decoder.interleaved() == (name == "glm4v")
    axes = decoder.axes()
    assert axes is not None
    assert axes.tolist() == {"qwen2.5": [0, 0, 1, 2], "qwen3": [0, 1, 2, 0], "glm4v": [0, 1, 1, 2]}[name]
