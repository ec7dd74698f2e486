"""What a prefill filter is shown of a batch whose samples differ, and what a cut costs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from benchmarks.operations import counted
from tests.runner.test_batches import samples, spec, together
from tests.tiny_models import llava
from tokcomp import Pipeline, PrefillFilter, Selection
from tokcomp.prefill.mustdrop import MustDrop
from tokcomp.runner.filtering import Filtering
from tokcomp.runner.masks import Visibility, layer_mask
from tokcomp.types import debug_checks

WAITING: set[Callable[..., Any]] = {
    Tensor.tolist, Tensor.item, Tensor.__bool__, Tensor.__int__, Tensor.__index__, Tensor.__float__, Tensor.nonzero,
    torch.nonzero, torch.equal, torch.masked_select,
}  # fmt: skip


class Looks(TorchFunctionMode):
    """Counts the calls that make the host wait for the device."""

    def __init__(self) -> None:
        super().__init__()
        self.number = 0

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.number += func in WAITING
        return func(*args, **(kwargs or {}))


def costs(pipeline: Pipeline, rows: int, monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int]]:
    """Operations, and looks at the device, of each cut of a batch."""
    found: list[tuple[int, int]] = []
    original = Filtering.apply

    def apply(self: Filtering, run: Any, layer: int, hidden: Tensor) -> Tensor:
        shorter: list[Tensor] = []
        with Looks() as looks:
            number = counted(lambda: shorter.append(original(self, run, layer, hidden)))
        found.append((number, looks.number))
        return shorter[0]

    monkeypatch.setattr(Filtering, "apply", apply)
    model = llava(sharp=2.0)
    with torch.no_grad(), debug_checks(False), pipeline.attach(model) as trace:
        model(**together(samples()[:rows]))
    assert min(trace.last.vision_tokens[-1]) < min(trace.last.after_vision)
    return found


@pytest.mark.parametrize(
    ("stages", "rows", "operations", "looks"),
    [
        ({"prefill": "mustdrop"}, 1, 26, 1),
        ({"prefill": "mustdrop"}, 3, 42, 1),
        ({"vision": "mustdrop", "prefill": "mustdrop"}, 3, 44, 1),
        ({"prefill": "fastv"}, 1, 16, 0),
        ({"vision": "mustdrop", "prefill": "fastv"}, 3, 45, 1),
    ],
    ids=lambda value: "+".join(f"{stage}-{name}" for stage, name in value.items()) if isinstance(value, dict) else None,
)
def test_a_cut_costs_few_operations_and_at_most_one_look(
    stages: dict[str, str], rows: int, operations: int, looks: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    pipeline = Pipeline(**{stage: spec(stage, name) for stage, name in stages.items()})
    found = costs(pipeline, rows, monkeypatch)
    assert max(number for number, _ in found) <= operations, found
    assert max(number for _, number in found) <= looks, found


def test_padding_of_a_view_is_not_attended(monkeypatch: pytest.MonkeyPatch) -> None:
    """Filters go by it: what they read of padded rows and columns is 0."""
    seen: list[Any] = []
    original = MustDrop.filter
    monkeypatch.setattr(MustDrop, "filter", lambda self, view: (seen.append(view), original(self, view))[1])
    model = llava(sharp=2.0)
    with (
        torch.no_grad(),
        Pipeline(vision=spec("vision", "mustdrop"), prefill=spec("prefill", "mustdrop")).attach(model),
    ):
        model(**together(samples()))
    for view in seen:
        shown = (view.rows[:, None, :, None] & view.valid[:, None, None]).expand(view.attention.shape)
        assert (view.attention[~shown] == 0).all()
        assert (view.attention[shown] > 0).any()
        assert not view.protected[~view.valid].any()
    assert any(not view.valid.all() for view in seen)
    assert any(not view.rows.all() for view in seen)


class Late(PrefillFilter):
    """Keeps every other token and hands on what it was shown, unread."""

    name = "late"

    def acts_after(self, depth: int) -> tuple[int, ...]:
        return (1, 3)

    def filter(self, view: Any) -> Selection:
        SHOWN.append(view)
        return Selection.from_mask(view.valid & (torch.arange(view.n_tokens) % 2 == 0))


SHOWN: list[Any] = []


def test_what_a_view_shows_does_not_depend_on_when_it_is_read() -> None:
    model, read = llava(sharp=2.0), ("tokens", "sizes", "origin", "image", "protected", "initial")
    tables: list[list[dict[str, Tensor]]] = []
    for early in (True, False):
        SHOWN.clear()

        class Reads(Late):
            def filter(self, view: Any, early: bool = early) -> Selection:
                for name in read if early else ():
                    getattr(view, name)
                return super().filter(view)

        with torch.no_grad(), Pipeline(vision=spec("vision", "mustdrop"), prefill=Reads()).attach(model):
            model(**together(samples()))
        tables.append([{name: getattr(view, name) for name in read} for view in SHOWN])
    assert len(tables[0]) == 2
    for one, other in zip(*tables, strict=True):
        assert all(torch.equal(one[name], other[name]) for name in read)


def test_a_mask_is_laid_out_once_for_all_layers() -> None:
    """What SDPA would make of a bool mask in every layer, bit by bit, in rows that its kernels need not copy."""
    valid = torch.tensor([[False, True, True, True, True], [True] * 5])
    sees = Visibility(5, valid)
    mask = layer_mask("sdpa", 5, sees, heads=4, dtype=torch.float32, device=valid.device)
    assert all(stride % 8 == 0 for stride in mask.stride()[:-1])
    assert torch.equal(mask == 0, sees.rows(torch.arange(5)))
    query, key, value = torch.randn(3, 2, 4, 5, 8).unbind()
    attend = torch.nn.functional.scaled_dot_product_attention
    one, other = attend(query, key, value, mask), attend(query, key, value, sees.rows(torch.arange(5)))
    assert torch.equal(one[:, :, 1:], other[:, :, 1:])
