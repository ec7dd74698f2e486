"""Applying a selection, against loops over slots."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from tokcomp import Selection
from tokcomp.ops.merging import apply_selection, compose_source, gather_tokens, merge_into, slots_of
from tokcomp.types import debug_checks


def random_merge(b: int, n: int, generator: torch.Generator) -> Selection:
    """Tokens merged, dropped or kept at random; rows end with different numbers of slots."""
    home = torch.full((b, n), -1)
    for row in range(b):
        survivors = torch.randperm(n, generator=generator)[: int(torch.randint(1, n + 1, (1,), generator=generator))]
        for token in range(n):
            pick = int(torch.randint(-1, len(survivors), (1,), generator=generator))
            home[row, token] = -1 if pick < 0 else survivors[pick]
        home[row, survivors] = survivors
    return merge_into(home, torch.randint(0, 5, (b, n), generator=generator))


def loop_apply(tokens: Tensor, sizes: Tensor, selection: Selection) -> tuple[Tensor, Tensor]:
    b, k = selection.keep.shape
    merged, merged_sizes = torch.zeros(b, k, tokens.shape[-1], dtype=torch.float64), torch.zeros(b, k)
    weights = sizes if selection.weight is None else selection.weight
    for row in range(b):
        for slot in range(k):
            if selection.keep[row, slot] < 0:
                continue
            members = [i for i in range(tokens.shape[1]) if selection.assign[row, i] == slot]
            total = sum(float(weights[row, i]) for i in members)
            for i in members:
                merged[row, slot] += float(weights[row, i]) / total * tokens[row, i].double()
                merged_sizes[row, slot] += sizes[row, i]
    return merged, merged_sizes


@settings(max_examples=40, deadline=None)
@given(b=st.integers(1, 3), n=st.integers(1, 12), weighted=st.booleans(), seed=st.integers(0, 10_000))
def test_merge_equals_the_loop(b: int, n: int, weighted: bool, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    selection = random_merge(b, n, generator)
    weight = torch.rand(b, n, generator=generator) + 0.1 if weighted else None
    selection = Selection.merge(selection.keep, selection.assign, weight=weight)
    selection.check(n, batch_size=b)
    tokens, sizes = torch.randn(b, n, 5, generator=generator), torch.randint(1, 6, (b, n), generator=generator).float()
    merged, merged_sizes = apply_selection(tokens, sizes, selection)
    expected, expected_sizes = loop_apply(tokens, sizes, selection)
    torch.testing.assert_close(merged.double(), expected, atol=1e-6, rtol=1e-6)
    assert torch.equal(merged_sizes, expected_sizes)


@settings(max_examples=40, deadline=None)
@given(b=st.integers(1, 3), n=st.integers(1, 12), weighted=st.booleans(), seed=st.integers(0, 10_000))
def test_sums_and_mixtures_equal_the_loop(b: int, n: int, weighted: bool, seed: int) -> None:
    """``combine`` sum adds members up as they are; a mixture adds up whatever it names, members or not."""
    generator = torch.Generator().manual_seed(seed)
    plan = random_merge(b, n, generator)
    k = plan.keep.shape[1]
    tokens, sizes = torch.randn(b, n, 5, generator=generator), torch.randint(1, 6, (b, n), generator=generator).float()
    weight = torch.randn(b, n, generator=generator) if weighted else None
    mix = torch.randn(b, k, n, generator=generator) * (torch.rand(b, k, n, generator=generator) < 0.5)
    summed = Selection.merge(plan.keep, plan.assign, weight=weight, combine="sum")
    mixed = Selection.merge(plan.keep, plan.assign, mix=mix)
    for selection in (summed, mixed):
        selection.check(n, batch_size=b)
    added, added_sizes = apply_selection(tokens, sizes, summed)
    blended, blended_sizes = apply_selection(tokens, sizes, mixed)
    assert torch.equal(added_sizes, loop_apply(tokens, sizes, plan)[1])
    assert torch.equal(blended_sizes, added_sizes)
    for row in range(b):
        for slot in range(k):
            one, other = torch.zeros(5), torch.zeros(5)
            if plan.keep[row, slot] >= 0:
                for i in range(n):
                    if plan.assign[row, i] == slot:
                        one += (1.0 if weight is None else weight[row, i]) * tokens[row, i]
                    other += mix[row, slot, i] * tokens[row, i]
            torch.testing.assert_close(added[row, slot], one, atol=1e-5, rtol=1e-5)
            torch.testing.assert_close(blended[row, slot], other, atol=1e-5, rtol=1e-5)


def test_a_mixture_never_reads_what_it_leaves_out_and_gradients_follow_it() -> None:
    tokens = torch.tensor([[[1.0], [torch.nan], [3.0]]], requires_grad=True)
    mix = torch.tensor([[[1.0, 0.0, 0.5], [0.0, 0.0, 2.0]]])
    selection = Selection.merge(torch.tensor([[0, 2]]), torch.tensor([[0, -1, 1]]), mix=mix)
    merged, _ = apply_selection(tokens, torch.ones(1, 3), selection)
    assert merged.flatten().tolist() == [2.5, 6.0]
    merged.sum().backward()
    assert tokens.grad.flatten().tolist() == [1.0, 0.0, 2.5]


def test_the_cls_token_takes_the_first_slot() -> None:
    selection = Selection.merge(
        torch.tensor([[1, 0]]), torch.tensor([[1, 1, -1]]), combine="sum", cls_first=torch.tensor([True])
    )
    selection.check(3)
    tokens, cls_token = torch.tensor([[[1.0], [2.0], [4.0]]]), torch.tensor([[9.0]])
    merged, sizes = apply_selection(tokens, torch.ones(1, 3), selection, cls_token=cls_token)
    assert merged.flatten().tolist() == [9.0, 3.0]
    assert sizes.tolist() == [[1.0, 2.0]]
    assert compose_source(torch.arange(3)[None], selection, 3).tolist() == [[1, 1, -1]]
    with pytest.raises(ValueError, match="no CLS token"):
        apply_selection(tokens, torch.ones(1, 3), selection)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"mix": torch.ones(1, 1, 2)}, r"mix has shape \(1, 1, 2\), expected \[..., 1, 3\]"),
        ({"mix": torch.full((1, 1, 3), torch.nan)}, "without NaN"),
        ({"mix": torch.ones(1, 1, 3), "weight": torch.ones(1, 3)}, "without a weight beside it"),
    ],
)
def test_a_mixture_that_does_not_fit_is_refused(fields: dict[str, Tensor], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Selection.merge(torch.tensor([[0]]), torch.tensor([[0, 0, 0]]), **fields).check(3)


def test_nothing_is_weighed_or_mixed_where_nothing_merges() -> None:
    for fields in ({"weight": torch.ones(1, 2)}, {"mix": torch.ones(1, 1, 2)}, {"cls_first": torch.tensor([True])}):
        with pytest.raises(ValueError, match="given without assign"):
            Selection(keep=torch.tensor([[0]]), **fields).check(2)


def test_gather_copies_in_order_and_zeros_padding() -> None:
    tokens, sizes = torch.randn(2, 4, 3), torch.tensor([[1.0, 2, 3, 4], [5, 6, 7, 8]])
    kept, kept_sizes = apply_selection(tokens, sizes, Selection(keep=torch.tensor([[3, 0, -1], [2, 1, 3]])))
    assert torch.equal(kept[0, :2], tokens[0, [3, 0]])
    assert torch.equal(kept[1], tokens[1, [2, 1, 3]])
    assert torch.equal(kept[0, 2], torch.zeros(3))
    assert torch.equal(kept_sizes, torch.tensor([[4.0, 1, 0], [7, 6, 8]]))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
def test_a_token_alone_in_its_slot_is_copied_exactly(dtype: torch.dtype) -> None:
    tokens, sizes = torch.randn(1, 5, 7).to(dtype), torch.tensor([[3.0, 7.0, 1.0, 1.0, 11.0]])
    selection = Selection.merge(torch.tensor([[4, 0, 1]]), torch.tensor([[1, 2, 0, -1, 0]]))
    merged, _ = apply_selection(tokens, sizes, selection)
    assert merged.dtype == dtype
    assert torch.equal(merged[0, 1:], tokens[0, :2])
    mean = (tokens[0, 2].double() + 11 * tokens[0, 4].double()) / 12
    torch.testing.assert_close(merged[0, 0].double(), mean, atol=4 * torch.finfo(dtype).eps, rtol=2e-2)


def test_half_precision_is_summed_in_float32() -> None:
    tokens = torch.full((1, 4096, 1), 1.0, dtype=torch.float16)  # a float16 sum of these stalls at 2048
    selection = Selection.merge(torch.zeros(1, 1, dtype=torch.long), torch.zeros(1, 4096, dtype=torch.long))
    merged, sizes = apply_selection(tokens, torch.ones(1, 4096), selection)
    assert merged.item() == 1.0
    assert sizes.item() == 4096


def test_weights_beyond_half_precision_do_not_overflow() -> None:
    selection = Selection.merge(torch.tensor([[0]]), torch.tensor([[0, 0]]))
    merged, sizes = apply_selection(torch.tensor([[[1.0], [3.0]]]).half(), torch.full((1, 2), 1e5), selection)
    assert merged.item() == 2.0
    assert sizes.item() == 2e5


def test_padding_slots_stay_empty() -> None:
    selection = Selection.merge(torch.tensor([[0, -1]]), torch.tensor([[0, 1]]))
    merged, sizes = apply_selection(torch.ones(1, 2, 1), torch.ones(1, 2), selection)
    assert merged.flatten().tolist() == [1.0, 0.0]
    assert sizes.tolist() == [[1.0, 0.0]]


def test_gradients_reach_members_and_nothing_else() -> None:
    tokens = torch.randn(1, 4, 2, requires_grad=True)
    selection = Selection.merge(torch.tensor([[1, 3]]), torch.tensor([[0, 0, -1, 1]]))
    merged, _ = apply_selection(tokens, torch.tensor([[1.0, 3.0, 1.0, 5.0]]), selection)
    merged.sum().backward()
    assert torch.equal(tokens.grad[0, :, 0], torch.tensor([0.25, 0.75, 0.0, 1.0]))


def test_dropped_values_are_never_read() -> None:
    tokens = torch.tensor([[[1.0], [torch.nan], [3.0], [torch.inf]]])
    selection = Selection.merge(torch.tensor([[0]]), torch.tensor([[0, -1, 0, -1]]))
    merged, sizes = apply_selection(tokens, torch.ones(1, 4), selection)
    assert merged.item() == 2.0
    assert sizes.item() == 2.0


def test_one_selection_serves_the_batch_and_heads_are_an_axis() -> None:
    tokens, sizes = torch.randn(3, 4, 2), torch.ones(3, 4)
    kept, _ = apply_selection(tokens, sizes, Selection(keep=torch.tensor([[2, 0]])))
    assert torch.equal(kept, tokens[:, [2, 0]])
    entries = torch.randn(1, 2, 4, 3)
    per_head = Selection.merge(torch.tensor([[[0], [3]]]), torch.tensor([[[0, 0, -1, -1], [-1, -1, 0, 0]]]))
    merged, _ = apply_selection(entries, torch.ones(1, 2, 4), per_head)
    torch.testing.assert_close(merged[0, 0, 0], entries[0, 0, :2].mean(0))
    torch.testing.assert_close(merged[0, 1, 0], entries[0, 1, 2:].mean(0))


def test_weights_that_sum_to_zero_are_refused_in_debug_mode() -> None:
    selection = Selection.merge(torch.tensor([[0]]), torch.tensor([[0, 0]]), weight=torch.tensor([[1.0, -1.0]]))
    with pytest.raises(ValueError, match="sum to zero"):
        apply_selection(torch.ones(1, 2, 1), torch.ones(1, 2), selection)
    with debug_checks(False):
        merged, _ = apply_selection(torch.tensor([[[1.0], [2.0]]]), torch.ones(1, 2), selection)
    assert not torch.isfinite(merged).any()


@settings(max_examples=30, deadline=None)
@given(n=st.integers(1, 10), seed=st.integers(0, 10_000))
def test_source_follows_two_selections(n: int, seed: int) -> None:
    """Tokens that carry their own members as a 0/1 row say where everything went."""
    generator = torch.Generator().manual_seed(seed)
    first = random_merge(2, n, generator)
    k = first.keep.shape[1]
    widths = (first.keep >= 0).sum(1)
    second = Selection.from_mask((torch.rand(2, k, generator=generator) < 0.6).logical_or(torch.arange(k) == 0)
                                 & (torch.arange(k) < widths[:, None]))  # fmt: skip
    source = torch.arange(n).expand(2, n)
    now = compose_source(source, first, n)
    later = compose_source(now, second, k)
    for row in range(2):
        kept = second.keep[row].tolist()
        for token in range(n):
            slot = int(first.assign[row, token])
            assert now[row, token] == slot
            assert later[row, token] == (kept.index(slot) if slot >= 0 and slot in kept else -1)


def test_slots_of_a_plain_selection() -> None:
    selection = Selection(keep=torch.tensor([[3, 1, -1], [0, 2, 4]]))
    assert slots_of(selection, 5).tolist() == [[-1, 1, -1, 0, -1], [0, -1, 1, -1, 2]]
    merged = Selection.merge(torch.tensor([[1]]), torch.tensor([[0, 0]], dtype=torch.int32))
    assert slots_of(merged, 2).tolist() == [[0, 0]]


def test_gather_tokens_takes_any_integer_index() -> None:
    values = torch.arange(6.0).view(1, 3, 2)
    assert gather_tokens(values, torch.tensor([[2, -1]], dtype=torch.int32)).tolist() == [[[4.0, 5.0], [0.0, 0.0]]]


def test_merge_into_orders_and_pads() -> None:
    home = torch.tensor([[2, 1, 2, -1], [0, 1, 2, 3]])
    selection = merge_into(home, torch.tensor([[0, 9, 1, 0], [3, 2, 2, 0]]))
    assert selection.keep.tolist() == [[2, 1, -1, -1], [3, 1, 2, 0]]
    assert selection.assign.tolist() == [[0, 1, 0, -1], [3, 1, 2, 0]]
    assert selection.ragged
    assert not merge_into(home[1:], home[1:]).ragged
