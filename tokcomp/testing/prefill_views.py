"""Fabricated views of the prefill stage: random prompts with every signal that a filter declares."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from tokcomp.plugin_signals import extra_names, made_up
from tokcomp.stages import PrefillFilter
from tokcomp.types import PrefillView, Selection, Signal

__all__ = ["alone", "kept", "prepare", "random_view", "tensor_fields", "with_later_text"]

HEADS, KV_HEADS, WIDTH, HEAD_WIDTH = 4, 2, 8, 4


def random_view(counts: Sequence[int], *, filter: PrefillFilter | None = None, rows: Sequence[int] | None = None,
                layer: int = 1, depth: int = 8, seed: int = 0, dtype: torch.dtype = torch.float32,
                protected: float = 0.0) -> PrefillView:  # fmt: skip
    """A batch of samples with ``counts`` vision tokens each; padding stands anywhere and holds what a careless filter
    would trip over.

    Args:
        filter: gets the query rows and the signals that it declares, and no others; None: text rows and all signals.
        rows: real text rows of each sample; they are right-aligned.
        protected: share of the tokens that are marked.
    """
    generator = torch.Generator().manual_seed(seed)
    filter = None if filter is None else filter.of_layer(layer, depth)
    b, n = len(counts), max(counts)
    valid, origin = _slots(counts, generator)
    last = filter is not None and filter.queries == "last"
    heights = torch.tensor([1] * b if last else rows or [3 + row for row in range(b)])
    real = _right_aligned(heights)
    attention = _attention(real, valid, generator)
    needs = frozenset(Signal) if filter is None else filter.signals()
    asked = Signal.QUERY_ATTENTION in needs and (filter is None or filter.queries is not None)
    filler = ~valid[..., None]
    told = torch.randint(1, 6, (b,), generator=generator)
    told = told if rows is None else torch.tensor(rows)
    text_valid = real if asked and not last else _right_aligned(told)
    text = torch.randn(*text_valid.shape, WIDTH, generator=generator).masked_fill(~text_valid[..., None], 1e4).to(dtype)
    text_keys = torch.randn(b, KV_HEADS, text.shape[1], HEAD_WIDTH, generator=generator).to(dtype)
    tells = Signal.TEXT in needs
    view = PrefillView(
        layer=layer,
        depth=depth,
        tokens=torch.randn(b, n, WIDTH, generator=generator).masked_fill(filler, 1e4).to(dtype),
        valid=valid,
        sizes=torch.ones(b, n),
        origin=origin,
        image=torch.zeros(b, n, dtype=torch.long),
        protected=(torch.rand(b, n, generator=generator) < protected) & valid,
        initial=torch.tensor(counts) + 3,
        _extra=made_up(needs, "prefill", (b, n), generator),
        _declared=extra_names(needs),
        _attention=attention if asked else None,
        _rows=real if asked else None,
        _keys=torch.randn(b, KV_HEADS, n, HEAD_WIDTH, generator=generator).to(dtype) if Signal.KEYS in needs else None,
        _text=text if tells else None,
        _text_valid=text_valid if tells else None,
        _text_keys=text_keys if tells and Signal.KEYS in needs else None,
        _final_norm=halved if Signal.FINAL_NORM in needs else None,
        _digest=torch.randint(-(2**62), 2**62, (b,), generator=generator) if Signal.DIGEST in needs else None,
    )
    if filter is not None:
        prepare(filter, view)
    return view


def _slots(counts: Sequence[int], generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Which slots hold a token, and at which placeholder it stands, ``[b, n]`` each."""
    valid = torch.zeros(len(counts), max(counts), dtype=torch.bool)
    origin = torch.zeros(valid.shape, dtype=torch.long)
    for row, count in enumerate(counts):
        columns = torch.randperm(max(counts), generator=generator)[:count].sort().values
        valid[row, columns] = True
        origin[row, columns] = torch.randperm(3 * count + 2, generator=generator)[:count].sort().values
    return valid, origin


def _right_aligned(heights: Tensor) -> Tensor:
    """Which rows are real ``[b, t]``, the last ``heights`` ``[b]`` of each sample."""
    t = int(heights.max())
    return torch.arange(t) >= t - heights[:, None]


def _attention(real: Tensor, valid: Tensor, generator: torch.Generator) -> Tensor:
    """Attention of the real rows ``[b, t]`` over the valid tokens ``[b, n]``: ``[b, h, t, n]``; the text has the rest."""
    logits = 3 * torch.randn(valid.shape[0], HEADS, real.shape[1], valid.shape[1], generator=generator)
    shown = real[:, None, :, None] & valid[:, None, None]
    return 0.7 * logits.masked_fill(~valid[:, None, None], -1e9).softmax(dim=-1) * shown


def prepare(filter: PrefillFilter, view: PrefillView) -> None:
    """Show a filter the prompt before the first layer, if it wants to; what it notes is in the view's memory then."""
    if filter.prepares():
        filter.prepare(dataclasses.replace(view, layer=-1, _attention=None, _rows=None))


def with_later_text(view: PrefillView, seed: int) -> PrefillView:
    """The view with two more text rows that are not real, as padding behind a prompt leaves them: rows are right-aligned, so
    that they stand in front."""
    assert view._text is not None
    assert view._text_valid is not None
    generator = torch.Generator().manual_seed(1000 + seed)
    b, d = view._text.shape[0], view._text.shape[2]
    other = (20 * torch.randn(b, 2, d, generator=generator)).to(view._text.dtype)
    parts: dict[str, Any] = {"_text": torch.cat([other, view._text], dim=1),
             "_text_valid": torch.nn.functional.pad(view._text_valid, (2, 0))}  # fmt: skip
    if view._text_keys is not None:
        shape = (b, view._text_keys.shape[1], 2, view._text_keys.shape[3])
        keys = (20 * torch.randn(shape, generator=generator)).to(view._text_keys.dtype)
        parts["_text_keys"] = torch.cat([keys, view._text_keys], dim=2)
    if view._attention is not None and view._rows is not None and view._rows.shape == view._text_valid.shape:
        parts["_attention"] = torch.nn.functional.pad(view._attention, (0, 0, 2, 0))
        parts["_rows"] = torch.nn.functional.pad(view._rows, (2, 0))
    return dataclasses.replace(view, **parts, memory={})


def halved(states: Tensor) -> Tensor:
    """Stands in for a norm: one that weighs the channels differently."""
    return states * torch.tensor([0.5, 1.0], device=states.device).repeat(states.shape[-1] // 2)


def tensor_fields(view: PrefillView) -> dict[str, Tensor]:
    """All tensors of a view by field name."""
    values = {field.name: getattr(view, field.name) for field in dataclasses.fields(view)}
    return {name: value for name, value in values.items() if isinstance(value, Tensor)}


def alone(view: PrefillView, row: int) -> PrefillView:
    """One sample of a batch as it would come without the others: no padding."""
    valid = view.valid[row]
    parts: dict[str, Any] = {}
    for name, value in tensor_fields(view).items():
        part = value[row : row + 1]
        if name == "_attention":
            part = part[:, :, view.rows[row]][..., valid]
        elif name == "_rows":
            part = part[:, view.rows[row]]
        elif name == "_keys":
            part = part[:, :, valid]
        elif name in ("_text", "_text_valid"):
            part = part[:, view.text_valid[row]]
        elif name == "_text_keys":
            part = part[:, :, view.text_valid[row]]
        elif name not in ("_digest", "initial"):
            part = part[:, valid]
        parts[name] = part.clone()
    noted = {name: value[row : row + 1, view.text_valid[row]].clone() for name, value in view.memory.items()}
    return dataclasses.replace(view, **parts, memory=noted)


def kept(selection: Selection, view: PrefillView, row: int) -> list[int]:
    """The tokens that one sample keeps, counted without padding."""
    place = (view.valid[row].cumsum(0) - 1).tolist()
    return [place[index] for index in selection.keep[row].tolist() if index >= 0]
