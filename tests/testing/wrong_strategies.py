"""Strategies that are wrong on purpose, each in one way; :data:`WRONG` says which rule must find it, and in what words."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from pydantic import Field, PrivateAttr, field_validator
from torch import Tensor

from tokcomp import Budget, CachePolicy, PrefillFilter, Selection, Signal, VisionReducer


class Reducer(VisionReducer):
    """Keeps the half of the tokens with the largest norm."""

    def reduce(self, view: Any) -> Any:
        return half_of(view, norms(view))


class Filter(PrefillFilter):
    """Keeps the half of the tokens with the largest norm."""

    def acts_after(self, depth: int) -> tuple[int, ...]:
        return (depth // 4,)

    def filter(self, view: Any) -> Any:
        return half_of(view, norms(view), protected=view.protected if self.respects_protected else None)


class Policy(CachePolicy):
    """Keeps the half of the entries with the smallest keys."""

    def after_prefill(self, view: Any) -> Any:
        return half_of(view, -view.keys.float().norm(dim=-1), protected=self.exempt(view))


def norms(view: Any) -> Tensor:
    return view.tokens.float().norm(dim=-1)


def half_of(view: Any, scores: Tensor, protected: Tensor | None = None) -> Selection:
    counts = Budget(keep_ratio=0.5).resolve(view.counts)
    return Selection.top_k(scores, counts, valid=view.valid, protected=protected)


class ReturnsScores(Reducer):
    """Returns its scores."""

    def reduce(self, view: Any) -> Any:
        return norms(view)


class FloatIndices(Filter):
    """Returns indices as floats."""

    def filter(self, view: Any) -> Any:
        return Selection(keep=super().filter(view).keep.float())


class QueryHeads(Policy):
    """Returns a row per query head, where keys have half as many."""

    def after_prefill(self, view: Any) -> Any:
        return Selection(keep=super().after_prefill(view).keep.repeat_interleave(2, dim=1))


class FlatMemory(Policy):
    """Remembers a number per sample."""

    def after_prefill(self, view: Any) -> Any:
        view.memory["mean"] = view.keys.float().mean(dim=(1, 2, 3))
        return super().after_prefill(view)


class CountsFromOne(Reducer):
    """Counts tokens from 1."""

    def reduce(self, view: Any) -> Any:
        keep = torch.arange(1, view.n_tokens + 1, device=view.device)
        return Selection(keep=keep.expand(view.batch_size, -1))


class KeepsTwice(Policy):
    """Keeps the first entry twice."""

    def after_prefill(self, view: Any) -> Any:
        keep = super().after_prefill(view).keep
        return Selection(keep=torch.cat([keep[..., :1], keep], dim=-1))


class BreaksPromises(Reducer):
    """Orders by score and promises ascending indices."""

    def reduce(self, view: Any) -> Any:
        best = norms(view).masked_fill(~view.valid, -1.0).argmax(dim=1, keepdim=True)
        others = torch.where(best == 0, 1, 0) if view.n_tokens > 1 else best[:, :0]
        return Selection(keep=torch.cat([best, others], dim=1), ascending=True)


class BehindTheLastLayer(Filter):
    """Acts after a layer that is not there."""

    def acts_after(self, depth: int) -> tuple[int, ...]:
        return (depth,)


class ActsNowhere(Policy):
    """Acts on no layer."""

    def acts_on(self, depth: int) -> range:
        return range(0)


class RoundsUp(Filter):
    """Rounds its budget up, and keeps one more."""

    keep_ratio: float = Field(default=0.3, gt=0, le=1, description="share of the tokens that is kept")

    def filter(self, view: Any) -> Any:
        counts = (view.counts * self.keep_ratio).ceil().long() + 1
        protected = view.protected if self.respects_protected else None
        return Selection.top_k(norms(view), counts.minimum(view.counts), valid=view.valid, protected=protected)


class DropsKeyTokens(Filter):
    """Does not look at key tokens."""

    def filter(self, view: Any) -> Any:
        return half_of(view, norms(view))


class DropsText(Policy):
    """Promises to keep text, and does not."""

    keep_text: bool = Field(default=True, description="never evict the entries of text tokens")

    def after_prefill(self, view: Any) -> Any:
        return half_of(view, -view.keys.float().norm(dim=-1))


class PeeksAtAttention(Filter):
    """Reads attention that it does not declare."""

    def filter(self, view: Any) -> Any:
        return half_of(view, view.attention.float().mean(dim=(1, 2)))


class AsksNoRows(PeeksAtAttention):
    """Declares attention, and not whose."""

    needs: ClassVar[frozenset[Signal]] = frozenset({Signal.QUERY_ATTENTION})


class LooksElsewhere(Reducer):
    """Reads a block that it does not look at."""

    needs: ClassVar[frozenset[Signal]] = frozenset({Signal.CLS_ATTENTION})

    def reduce(self, view: Any) -> Any:
        return half_of(view, view.at(0).cls_attention.mean(dim=1))


class MarksInSecret(Reducer):
    """Marks key tokens and does not say so."""

    def reduce(self, view: Any) -> Any:
        return Selection.all(view.n_tokens, batch_size=view.batch_size, device=view.device, protect=view.valid)


class NeverAsked(Policy):
    """Would act in decoding, if it said so."""

    def after_step(self, view: Any) -> Any:
        return self.after_prefill(view)


class SaysLayersAreAlike(Policy):
    """Says that it reads no keys."""

    layers_alike: ClassVar[bool] = True


class Remembers(Reducer):
    """Goes on with what it decided first."""

    _first: Tensor | None = PrivateAttr(default=None)

    def reduce(self, view: Any) -> Any:
        mean = norms(view).masked_fill(~view.valid, 0.0).sum() / view.counts.sum()
        if self._first is None:
            self._first = mean
        return Selection.from_mask(view.valid & ((norms(view) >= self._first) | (view.origin == view.origin[:, :1])))


class SetsItself(Filter):
    """Keeps the view on itself, where a local variable would do."""

    def filter(self, view: Any) -> Any:
        self.last = view
        return super().filter(view)


class CountsItsCalls(Policy):
    """Counts calls on the class."""

    calls: ClassVar[list[int]] = [0]

    def after_prefill(self, view: Any) -> Any:
        self.calls[0] += 1
        return super().after_prefill(view)


class ScalesInPlace(Reducer):
    """Normalises the tokens in place."""

    def reduce(self, view: Any) -> Any:
        scores = norms(view)
        view.tokens.div_(view.tokens.norm(dim=-1, keepdim=True))
        return half_of(view, scores)


class BatchMean(Reducer):
    """Keeps what is above the mean of the batch."""

    def reduce(self, view: Any) -> Any:
        scores = norms(view).masked_fill(~view.valid, 0.0)
        above = scores >= scores.sum() / view.counts.sum()
        return Selection.from_mask(view.valid & (above | (scores == scores.amax(dim=1, keepdim=True))))


class OnTheHost(Filter):
    """Looks its mask up on the CPU."""

    def filter(self, view: Any) -> Any:
        rank = view.valid.long().cumsum(dim=1) - 1
        wanted = torch.tensor([True, False])[rank % 2]
        return Selection.from_mask(view.valid & (wanted | view.protected))


class HostIndices(Reducer):
    """Returns indices on the CPU."""

    def reduce(self, view: Any) -> Any:
        return Selection(keep=torch.arange(0, view.n_tokens, 2).expand(view.batch_size, -1))


class Dice(Reducer):
    """Keeps a random half."""

    def reduce(self, view: Any) -> Any:
        return half_of(view, torch.rand(view.valid.shape, device=view.device))


class ReadsAhead(Filter):
    """Goes by all text rows, real or not."""

    needs: ClassVar[frozenset[Signal]] = frozenset({Signal.TEXT})

    def filter(self, view: Any) -> Any:
        query = view.text.float().mean(dim=1, keepdim=True)
        scores = (view.tokens.float() * query).sum(dim=-1)
        return half_of(view, scores, protected=view.protected if self.respects_protected else None)


class SumsAllRows(Policy):
    """Sums attention rows, real or not."""

    needs: ClassVar[frozenset[Signal]] = frozenset({Signal.ATTENTION_ROWS})

    def after_prefill(self, view: Any) -> Any:
        received = sum(attention.sum(dim=(1, 2)) for attention, _ in view.attention_rows)
        return half_of(view, received[:, None].expand_as(view.valid), protected=self.exempt(view))


class HalvesOne(Reducer):
    """Keeps half, rounded down."""

    def reduce(self, view: Any) -> Any:
        return Selection.top_k(norms(view), view.counts // 2, valid=view.valid)


class PairsOfRows(Reducer):
    """Needs an even grid."""

    def reduce(self, view: Any) -> Any:
        rows, columns = view.grid
        even = torch.arange(rows, device=view.device).view(rows // 2, 2)[:, 0]
        chosen = torch.zeros(rows, columns, dtype=torch.bool, device=view.device)
        chosen[even] = True
        first = view.origin == view.origin[:, :1]
        return Selection.from_mask(view.valid & (chosen.flatten()[view.origin] | first))


class StacksRows(Policy):
    """Needs samples of one length."""

    def after_prefill(self, view: Any) -> Any:
        rows = [row[seen] for row, seen in zip(view.index[:, 0], view.valid[:, 0], strict=True)]
        keep = torch.arange(torch.stack(rows).shape[1], device=view.device)
        return Selection(keep=keep.expand(view.batch_size, -1))


class SinglePrecision(Reducer):
    """Takes a quantile, which half precision does not have."""

    def reduce(self, view: Any) -> Any:
        scores = view.tokens.norm(dim=-1).masked_fill(~view.valid, torch.nan)
        return Selection.from_mask(view.valid & (scores >= scores.nanquantile(0.5, dim=1, keepdim=True)))


class ShiftsItsField(Filter):
    """Changes a field whenever it is read."""

    layer: int = Field(default=1, ge=1, description="the layer")

    @field_validator("layer")
    @classmethod
    def _from_zero(cls, layer: int) -> int:
        return layer + 1


class HoldsAnObject(Policy):
    """Has a field that no file can hold."""

    dtype: Any = Field(default=torch.float32, description="in which it computes")


class Silent(Reducer):
    step: int = Field(default=2, ge=1)


class AllPairs(Filter):
    """Compares all tokens with all."""

    def filter(self, view: Any) -> Any:
        similar = view.tokens.float() @ view.tokens.float().transpose(1, 2)
        similar = similar.masked_fill(~view.valid[:, None], 0.0)
        return half_of(view, -similar.abs().amax(dim=2), protected=view.protected if self.respects_protected else None)


class OneByOne(Policy):
    """Looks at entries one by one."""

    def after_prefill(self, view: Any) -> Any:
        scores = torch.stack([entry.float().norm(dim=-1) for entry in view.keys.unbind(dim=2)], dim=-1)
        return half_of(view, -scores, protected=self.exempt(view))


_seen: dict[tuple[int, ...], Tensor] = {}


class SharesByShape(Reducer):
    """Keeps its decisions in the module, by shape."""

    def reduce(self, view: Any) -> Any:
        key = tuple(view.tokens.shape)
        if key not in _seen:
            _seen[key] = half_of(view, norms(view)).keep
        return Selection(keep=_seen[key])


def local_strategy() -> Reducer:
    """A class that no other process can find."""

    class Local(Reducer):
        """Keeps half."""

    return Local()


WRONG: list[tuple[Any, str, str]] = [
    (ReturnsScores, "selection", "reduce() returned a tensor of shape"),
    (FloatIndices, "selection", "returned keep with dtype float32, expected indices"),
    (QueryHeads, "selection", "returned keep of shape ("),
    (FlatMemory, "selection", "view.memory['mean'] has shape (1,), expected one number per entry"),
    (CountsFromOne, "indices", "keep holds indices from 1 to"),
    (KeepsTwice, "indices", "keep names token"),
    (BreaksPromises, "indices", "ascending=True was promised"),
    (BehindTheLastLayer, "places", "acts at layer 4 of a model with 4 layers"),
    (ActsNowhere, "places", "acts nowhere"),
    (RoundsUp, "budget", "keep_ratio=0.3 of"),
    (DropsKeyTokens, "protected", "of the tokens that must stay"),
    (DropsText, "protected", "after_prefill() drops"),
    (PeeksAtAttention, "needs", "reads the signal 'query_attention', which it does not declare"),
    (AsksNoRows, "needs", "queries is None"),
    (LooksElsewhere, "needs", "reads a block that it does not look at"),
    (MarksInSecret, "needs", "marks key tokens (protect), but the class does not say that it protects"),
    (NeverAsked, "needs", "defines after_step(), but does not act in decoding"),
    (SaysLayersAreAlike, "needs", "says layers_alike"),
    (Remembers, "state", "decides differently after it has seen another input"),
    (SetsItself, "state", "sets self.last"),
    (CountsItsCalls, "state", "holds something new in CountsItsCalls.calls"),
    (ScalesInPlace, "inputs", "reduce() changes view.tokens in place"),
    (BatchMean, "batch", "of a batch otherwise than about the sample alone"),
    (OnTheHost, "device", "expected all tensors to be on the same device"),
    (HostIndices, "device", "returns keep on the CPU, though its view is on another device"),
    (Dice, "determinism", "draws from the global generator of torch"),
    (ReadsAhead, "future", "decides by what comes after the query"),
    (SumsAllRows, "future", "leave out the rows of view.attention_rows"),
    (HalvesOne, "one-token", "keep has an empty row"),
    (PairsOfRows, "odd-grid", "reduce() raised RuntimeError: shape"),
    (StacksRows, "ragged-batch", "after_prefill() raised RuntimeError: stack expects each tensor to be equal size"),
    (SinglePrecision, "bfloat16", "reduce() raised RuntimeError: quantile()"),
    (local_strategy(), "pickle", "cannot be pickled"),
    (ShiftsItsField, "config", "the fields layer come back changed"),
    (HoldsAnObject, "config", "its fields cannot be written to YAML"),
    (Silent, "description", "it has no docstring"),
    (AllPairs, "cost", "its largest tensor grows with the square of the tokens"),
    (OneByOne, "cost", "more operations for every further token: a Python loop over tokens"),
    (SharesByShape, "model", "keeps other vision tokens in a batch than alone"),
]
"""The strategy, the rule that it breaks, and words of the message."""
