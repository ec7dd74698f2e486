"""Received attention against the whole map."""

from __future__ import annotations

import pytest
import torch

from tokcomp.ops.received import received_attention, unsplit


@pytest.mark.parametrize("biased", [False, True])
@pytest.mark.parametrize("padded", [False, True])
def test_equals_the_mean_of_the_map(biased: bool, padded: bool) -> None:
    generator = torch.Generator().manual_seed(0)
    query, key = torch.randn(2, 3, 7, 5, generator=generator), torch.randn(2, 3, 8, 5, generator=generator)
    bias = torch.randn(2, 1, 1, 8, generator=generator) if biased else None
    valid = torch.arange(7) < torch.tensor([[7], [4]]) if padded else None
    logits = 0.4 * query @ key.transpose(-1, -2) + (0 if bias is None else bias)
    if padded:
        logits[
            1, :, :, 5:
        ] = -torch.inf  # the first key is no row's own; those of the rows that are padding get nothing
    rows = logits.softmax(-1).mean(1)  # (b, t, l)
    counts = [7, 4] if padded else [7, 7]
    expected = torch.stack([rows[i, :count].mean(0) for i, count in enumerate(counts)])
    torch.testing.assert_close(received_attention(query, key, scale=0.4, bias=bias, valid=valid), expected)


def test_padding_changes_no_score() -> None:
    generator = torch.Generator().manual_seed(0)
    query, key = torch.randn(1, 3, 4, 5, generator=generator), torch.randn(1, 3, 4, 5, generator=generator)
    alone = received_attention(query, key, scale=0.4)
    padded = [torch.nn.functional.pad(x, (0, 0, 0, 3)) for x in (query, key)]
    among = received_attention(*padded, scale=0.4, valid=(torch.arange(7) < 4)[None])
    torch.testing.assert_close(among, torch.nn.functional.pad(alone, (0, 3)))
    torch.testing.assert_close(alone.sum(dim=1), torch.ones(1))


def test_unsplit_puts_the_heads_side_by_side() -> None:
    states = torch.arange(12.0).view(1, 2, 3, 2)
    assert torch.equal(unsplit(states)[0, 0], torch.cat([states[0, 0], states[0, 1]], dim=-1))
