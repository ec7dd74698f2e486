"""PiToMe against a plain loop of the paper's rule."""

from __future__ import annotations

import math

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tokcomp import Site
from tokcomp.ops.merging import apply_selection
from tokcomp.testing.vision_views import random_view
from tokcomp.vision.pitome import PiToMe


@settings(max_examples=25, deadline=None)
@given(counts=st.lists(st.integers(1, 20), min_size=1, max_size=3), r=st.sampled_from([0.05, 0.2, 0.45]),
       layer=st.integers(0, 3), protected=st.booleans(), seed=st.integers(0, 99))  # fmt: skip
def test_equals_the_plain_rule(counts: list[int], r: float, layer: int, protected: bool, seed: int) -> None:
    view = random_view(counts, (4, 5), site=Site.mid(layer), seed=seed, merged=True, protected=protected)
    selection = PiToMe(r=r).reduce(view)
    selection.check(view.n_tokens, batch_size=len(counts), valid=view.valid)
    out, sizes = apply_selection(view.tokens, view.sizes, selection)
    for row, count in enumerate(counts):
        unit = torch.nn.functional.normalize(view.keys[row], dim=-1)
        margin = 0.9 - 0.9 * layer / 4
        like = [[float(unit[i] @ unit[j]) for j in range(count)] for i in range(count)]
        felt = [[x if x >= margin else math.exp(x - margin) - 1 for x in line] for line in like]
        energy = [sum(felt[i][j] for j in range(count) if j != i) / count for i in range(count)]
        free = [i for i in range(count) if not view.protected[row, i]]
        pairs = min(max(1, round(r * 20)), len(free) // 2)
        ranked = sorted(free, key=lambda i, e=energy: (-e[i], i))[: 2 * pairs]
        evens, odds = ranked[::2], ranked[1::2]
        groups = {target: [target] for target in odds}
        for token in evens:
            groups[max(odds, key=lambda t, i=token, s=like: s[i][t])].append(token)
        kept = [i for i in range(count) if i not in ranked] + odds
        assert [i for i in selection.keep[row].tolist() if i >= 0] == kept
        for slot, token in enumerate(kept):
            members = groups.get(token, [token])
            weight = view.sizes[row, members]
            mean = (weight[:, None] * view.tokens[row, members]).sum(0) / weight.sum()
            torch.testing.assert_close(out[row, slot], mean, atol=1e-5, rtol=1e-5)
            assert sizes[row, slot] == weight.sum()


def test_tokens_that_stand_alone_are_left() -> None:
    """Four alike and two of their own kind: the four merge."""
    view = random_view([6], (2, 3), site=Site.mid(3))
    keys = torch.tensor([[1.0, 0, 0], [1, 0.1, 0], [0, 1, 0], [1, 0, 0.1], [0, 0, 1], [1, 0.1, 0.1]])
    view = type(view)(**{**vars(view), "_keys": keys[None]})
    _, sizes = apply_selection(view.tokens, torch.ones(1, 6), PiToMe(r=0.34).reduce(view))
    assert sizes[0, :2].tolist() == [1, 1]
    assert sizes[0].sum() == 6
    assert len(sizes[0]) == 4


def test_acts_in_every_block() -> None:
    assert PiToMe().sites(3) == (Site.mid(0), Site.mid(1), Site.mid(2))
    assert PiToMe(r=0.0).sites(3) == ()
    assert PiToMe().weighs_attention()
