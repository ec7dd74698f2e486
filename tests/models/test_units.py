"""Units are what the model makes of patches: which ones it folds into a token, which placeholder the token fills."""

from __future__ import annotations

from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor

from tests.models.families import families, models
from tests.models.naive import dense_inputs
from tokcomp import Pipeline, Selection, Signal, VisionReducer, VisionView
from tokcomp.models.adapter import find_adapter
from tokcomp.ops.received import received_attention
from tokcomp.runner.images import Images

SEEN: list[VisionView] = []


class Look(VisionReducer):
    """Keeps what it saw, and every token."""

    needs: ClassVar[frozenset[Signal]] = frozenset({Signal.KEYS, Signal.CLS_ATTENTION})
    without_cls: ClassVar[Any] = "received"

    def reduce(self, view: VisionView) -> Selection:
        SEEN.append(view)
        return Selection.all(view.n_tokens, batch_size=view.batch_size)


class LookWide(Look):
    """Also at the attention of heads that are not split."""

    needs: ClassVar[frozenset[Signal]] = Look.needs | {Signal.UNSPLIT_ATTENTION}


# Towers of segments attend within windows and across frames: test_segments.py and test_packed.py hold theirs.
OURS = {
    name: family for name, family in families().items() if name not in ("qwen2_vl", "qwen2_5_vl", "qwen3_vl", "glm4v")
}
CASES = [(name, "image") for name in OURS]
CASES += [(name, "video") for name, family in OURS.items() if family.video is not None]
FOLDING = [case for case in CASES if case not in [(name, "image") for name in (
    "llava", "vipllava", "llava_next", "llava_next_video", "llava_onevision", "llava_pixtral", "paligemma")]]  # fmt: skip


def sample_of(name: str, kind: str) -> dict[str, Any]:
    family = families()[name]
    sample = family.sample(2, 0) if kind == "image" else family.video and family.video(0)
    if kind == "image" and find_adapter(models(name)).tower.packed:
        sample = family.batch([family.sample(1, 0)] * 2)  # reducers see images of one size at a time
    assert sample
    return sample


def look(name: str, kind: str) -> tuple[VisionView, Images, Tensor, tuple[Tensor, Tensor]]:
    """What a reducer sees on the features, the token table, and the states, queries and keys of the feature block."""
    model = models(name)
    tower = find_adapter(model).tower
    assert tower is not None
    assert tower.feature_block is not None
    block = tower.blocks[tower.feature_block]
    states: list[Tensor] = []
    SEEN.clear()
    with Pipeline(vision=Look()).attach(model) as trace:
        handle = block.module.register_forward_hook(
            lambda m, a, out: states.append(out[0] if isinstance(out, tuple) else out)
        )
        model(**sample_of(name, kind))
        handle.remove()
    return SEEN[0], trace.last._request.images[0], states[0], (SEEN[0].keys, SEEN[0].cls_attention)


@pytest.mark.parametrize(("name", "kind"), FOLDING)
def test_a_unit_depends_on_the_patches_that_are_its_members(name: str, kind: str) -> None:
    view, images, states, _ = look(name, kind)
    tower = find_adapter(models(name)).tower
    assert tower is not None
    assert images.layout.members is not None
    row = images.n_rows - 1
    first = sum(images.patches[:row])
    for unit in range(images.units[row]):
        # Some weighted sum: the plain one of a normalised state is the same for every input.
        told = view.tokens[row, unit].cos().sum()
        (gradient,) = torch.autograd.grad(told, states, retain_graph=True)
        touched = (gradient[:, tower.n_prefix :].flatten(0, 1).abs().sum(dim=-1) > 0).nonzero()[:, 0] - first
        members = images.layout.members[row][unit]
        if images.layout.weights is not None:
            members = members[images.layout.weights[row][unit] > 1e-6]
        assert touched.tolist() == sorted(set(members.tolist())), unit


@pytest.mark.parametrize(("name", "kind"), CASES)
@torch.no_grad()
def test_signals_are_means_over_the_patches_of_a_unit(name: str, kind: str) -> None:
    """Computed here image by image from the block's own query and key projections."""
    view, images, _, (keys, attention) = look(name, kind)
    per_patch = per_row_signals(name, kind, images)
    for row, (own_keys, own_attention) in enumerate(per_patch):
        here = view.origin[row, view.valid[row]]  # units that the model cuts off are not shown
        members, weights = images.layout.members, images.layout.weights
        index = here[:, None] if members is None else members[row][here]
        count = len(here)
        share = torch.full(index.shape, 1 / index.shape[1]) if weights is None else weights[row][here]
        torch.testing.assert_close(
            keys[row, :count], (own_keys[index] * share[..., None]).sum(dim=1), atol=1e-5, rtol=0
        )
        expected = (own_attention[:, index] * share).sum(dim=-1)
        torch.testing.assert_close(attention[row, :, :count], expected, atol=1e-5, rtol=0)
        assert not view.valid[row, count:].any()


@pytest.mark.parametrize("name", ["llava_pixtral", "mistral3"])
@torch.no_grad()
def test_images_of_other_sizes_in_the_call_change_no_signal(name: str) -> None:
    """Rows of a packed tower are padded to the longest; the padding gives and receives no attention."""
    family, model = families()[name], models(name)
    samples = [family.sample(1, seed) for seed in (0, 2, 3)]
    found = []
    for given in (samples, [family.batch(samples)]):
        SEEN.clear()
        with Pipeline(vision=LookWide()).attach(model):
            for sample in given:
                model(**sample)
        found.append([*SEEN])
    alone, among = found
    assert len({view.n_tokens for view in alone}) == len(alone) == len(among) == 3
    for own, ours in zip(alone, among, strict=True):
        torch.testing.assert_close(ours.cls_attention, own.cls_attention, atol=1e-5, rtol=0)
        torch.testing.assert_close(ours.unsplit_attention, own.unsplit_attention, atol=1e-5, rtol=0)
        torch.testing.assert_close(ours.keys, own.keys, atol=1e-4, rtol=0)


def per_row_signals(name: str, kind: str, images: Images) -> list[tuple[Tensor, Tensor]]:
    """Head-mean keys ``[n, d]`` and the attention of the CLS token, or received, ``[h|1, n]`` of every row's patches."""
    model = models(name)
    tower = find_adapter(model).tower
    assert tower is not None
    assert tower.feature_block is not None
    taken: list[tuple[Tensor, Tensor]] = []
    from tokcomp.runner.hooks import Hooks

    hooks = Hooks()
    hooks.switch(tower.config)
    scale: list[float] = []
    hooks.observe(tower.blocks[tower.feature_block].attention,
                  lambda q, k, s: (taken.append((q, k)), scale.append(s))[0])  # fmt: skip
    model(**sample_of(name, kind))
    hooks.close()
    query, key = taken[0]
    rows = split(query, images, tower), split(key, images, tower)
    out = []
    for q, k in zip(*rows, strict=True):  # (tiles, h, prefix + n, d)
        if tower.has_cls:
            attention = (q[:, :, :1] @ k.transpose(-1, -2) * scale[0]).softmax(dim=-1)[:, :, 0, tower.n_prefix :]
        else:
            attention = received_attention(q, k, scale=scale[0], bias=None, valid=None)[:, None]
        plain = k.mean(dim=1)[:, tower.n_prefix :]
        out.append((plain.flatten(0, 1), attention.transpose(0, 1).flatten(1)))
    return out


def split(x: Tensor, images: Images, tower: Any) -> list[Tensor]:
    """Heads of every row of the table: of its own in a batch, a piece of the sequence, or all tiles of an image."""
    if tower.packed:
        return list(x.split(list(images.patches), dim=2))
    if images.layout.regrouped:
        return list(x.split([patches // (x.shape[2] - tower.n_prefix) for patches in images.patches]))
    return list(x.split(1))


@pytest.mark.parametrize(("name", "kind"), CASES)
@torch.no_grad()
def test_every_placeholder_holds_the_unit_that_the_layout_says(name: str, kind: str) -> None:
    """Marked units arrive where they should: the projected state of each unit is found in the decoder's input."""
    model, sample = models(name), sample_of(name, kind)
    given, _ = dense_inputs(model, sample)
    view, images, _, _ = look(name, kind)
    tokens = torch.tensor([modality.token_id for modality in find_adapter(model).modalities])
    held = given["inputs_embeds"][torch.isin(sample["input_ids"], tokens)]
    placed = images.layout.placed if images.layout.placed is not None else torch.arange(len(held))
    assert len(placed) == len(held) == sum(images.layout.lengths)
    assert sorted(placed[placed >= 0].tolist()) == sorted(set(placed[placed >= 0].tolist()))
    separators = held[placed < 0]
    assert bool((separators == separators[:1]).all())
    projected = projected_units(model, sample, view, images)
    torch.testing.assert_close(held[placed >= 0], projected[placed[placed >= 0]], atol=1e-5, rtol=0)


def projected_units(model: Any, sample: dict[str, Any], view: VisionView, images: Images) -> Tensor:
    """The projected state of every unit, numbered row after row."""
    tower = find_adapter(model).tower
    assert tower is not None
    if images.layout.late:  # units are made of projected patches: that is what the reducer sees
        return view.tokens.flatten(0, 1)[images.flat]
    out: list[Tensor] = []
    handle = tower.exit.register_forward_hook(lambda m, a, value: out.append(value))
    model(**sample)
    handle.remove()
    return out[0].reshape(-1, out[0].shape[-1])
