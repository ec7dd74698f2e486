"""What is wrong with a returned selection, in words."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from torch import Tensor

from tokcomp.testing.benches import Decided
from tokcomp.types import Selection

__all__ = ["wrong_indices", "wrong_shape"]


def wrong_shape(decided: Decided, stage: str) -> str | None:
    """What is wrong with the type, the shapes or the dtypes of a selection; None: nothing."""
    selection, view, called = decided.selection, decided.view, decided.called
    if selection is None and stage == "cache":
        return None
    if not isinstance(selection, Selection):
        what = f"a tensor of shape {tuple(selection.shape)}" if isinstance(selection, Tensor) else repr(selection)
        return f"{called} returned {what}, not a Selection"
    n = view.n_entries if stage == "cache" else view.n_tokens
    keep = selection.keep
    if not isinstance(keep, Tensor):
        return f"{called} returned a Selection whose keep is a {type(keep).__name__}, not a tensor"
    if not _integer(keep):
        return f"{called} returned keep with dtype {_dtype(keep)}, expected indices (an integer dtype)"
    dims = (2, 3) if stage == "cache" else (2,)
    heads = keep.dim() == 3 and keep.shape[1] != view.valid.shape[1]
    if keep.dim() not in dims or keep.shape[0] not in (1, view.batch_size) or heads:
        expected = f"[{view.batch_size}, k]"
        if stage == "cache":
            expected += f" or [{view.batch_size}, {view.valid.shape[1]}, k]"
        return f"{called} returned keep of shape {tuple(keep.shape)}, expected {expected}"
    return _wrong_companions(selection, n, called)


def _wrong_companions(selection: Selection, n: int, called: str) -> str | None:
    keep, k = selection.keep, selection.keep.shape[-1]
    if selection.protect is not None and selection.protect.is_floating_point():
        return f"{called} returned protect with dtype {_dtype(selection.protect)}, expected a mask (bool)"
    if selection.protect is not None and selection.protect.shape != keep.shape:
        return f"{called} returned protect of shape {tuple(selection.protect.shape)}, expected that of keep {tuple(keep.shape)}"
    if selection.assign is None:
        alone = [name for name in ("weight", "mix", "cls_first") if getattr(selection, name) is not None]
        return f"{called} returned {alone[0]} without assign: there is nothing to merge" if alone else None
    if not _integer(selection.assign):
        return f"{called} returned assign with dtype {_dtype(selection.assign)}, expected slots (an integer dtype)"
    if selection.assign.shape[-1] != n:
        return (
            f"{called} returned assign of shape {tuple(selection.assign.shape)}, expected one slot per token: [.., {n}]"
        )
    weight, mix = selection.weight, selection.mix
    if weight is not None and (weight.shape != selection.assign.shape or not weight.is_floating_point()):
        return (f"{called} returned weight of shape {tuple(weight.shape)} and dtype {_dtype(weight)}, expected floats of the "
                f"shape of assign {tuple(selection.assign.shape)}")  # fmt: skip
    if mix is not None and (mix.shape[-2:] != (k, n) or not mix.is_floating_point()):
        return f"{called} returned mix of shape {tuple(mix.shape)}, expected floats [.., {k}, {n}]"
    return None


def wrong_indices(decided: Decided, stage: str) -> str | None:
    """What is wrong with the contents of a selection whose shapes are right; None: nothing."""
    selection: Any = decided.selection
    if selection is None:
        return None
    view, called = decided.view, decided.called
    n = view.n_entries if stage == "cache" else view.n_tokens
    valid = None if stage == "vision" else view.valid
    if stage == "cache" and selection.keep.dim() == 2:
        valid = view.valid[:, 0]
    if valid is not None and selection.keep.shape[0] != valid.shape[0]:
        selection = replace(selection, keep=selection.keep.expand(valid.shape[0], *selection.keep.shape[1:]),
                            protect=None)  # fmt: skip
    try:
        selection.check(n, batch_size=view.batch_size, valid=valid)
    except (TypeError, ValueError) as error:
        return f"{called} returned a wrong selection: {error}"
    if stage == "vision" and bool((~_holds_one(selection, view)).any()):
        return f"{called} keeps nothing but padding of a row: use view.valid"
    if selection.complete and selection.assign is not None and bool((selection.assign < 0).any()):
        return f"{called} promised complete=True, but assign drops a token (-1)"
    return None


def _holds_one(selection: Selection, view: Any) -> Tensor:
    keep = selection.keep.expand(view.batch_size, -1)
    return ((keep >= 0) & view.valid.gather(1, keep.clamp(min=0))).any(dim=1)


def _integer(value: Tensor) -> bool:
    return not value.is_floating_point() and not value.is_complex() and str(value.dtype) != "torch.bool"


def _dtype(value: Tensor) -> str:
    return str(value.dtype).removeprefix("torch.")
