"""Signals that plug-ins bring along, in real models: the same values as built-in ones that are computed from the same, made only
where a strategy needs them, and refused where nobody declared them."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from tests import tiny_models
from tests.models import packed_models
from tokcomp import CachePolicy, Pipeline, PrefillFilter, Selection, Signal, VisionReducer, register_signal
from tokcomp import plugin_signals as module
from tokcomp.catalog.ask import needs_text
from tokcomp.errors import CompatibilityError, PluginError
from tokcomp.plugin_signals import Attention
from tokcomp.testing.vision_views import random_view
from tokcomp.types import Site, UndeclaredSignalError

CALLS: list[str] = []
SEEN: list[tuple[Tensor, Tensor]] = []


@pytest.fixture(autouse=True)
def _nothing_seen() -> None:
    CALLS.clear()
    SEEN.clear()


def cls_row(seen: Attention) -> Tensor:
    CALLS.append("cls_row")
    return seen.rows(0, 1)[:, :, 0, seen.n_prefix :].mean(dim=1)


def given(seen: Attention) -> Tensor:
    """What each patch receives: the mean over heads and rows."""
    return seen.rows(seen.n_prefix, seen.query.shape[2]).mean(dim=1)[..., seen.n_prefix :].sum(dim=1)


def contrast(view: Any) -> Tensor:
    CALLS.append("contrast")
    return (view.keys - view.keys.mean(dim=1, keepdim=True)).norm(dim=-1)


def last_row(seen: Attention) -> Tensor:
    length = seen.query.shape[2]
    return torch.stack(
        [seen.rows(length - 1, length)[:, :, 0].mean(dim=1), seen.query.norm(dim=-1).mean(dim=1)], dim=-1
    )


def received(seen: Attention) -> Tensor:
    b, g, length, _ = seen.key.shape
    return seen.rows(0, seen.query.shape[2]).sum(dim=2).view(b, g, -1, length).sum(dim=2)


CLS_ROW = register_signal("test_cls_row", stage="vision", from_attention=cls_row)
GIVEN = register_signal("test_given", stage="vision", from_attention=given)
CONTRAST = register_signal("test_contrast", stage="vision", from_view=contrast, needs=[Signal.KEYS])
LAST_ROW = register_signal("test_last_row", stage="prefill", from_attention=last_row, width=2)
RECEIVED = register_signal("test_received", stage="cache", from_attention=received)


class ByClsRow(VisionReducer):
    """Half of the tokens, by the plug-in's signal."""

    needs = frozenset({CLS_ROW, Signal.CLS_ATTENTION})

    def reduce(self, view: Any) -> Selection:
        SEEN.append((view.read(CLS_ROW), view.cls_attention.mean(dim=1)))
        return Selection.top_k(view.read(CLS_ROW), view.counts // 2, valid=view.valid)


class ByContrast(VisionReducer):
    """Half of the tokens, by a signal of the view that is read twice."""

    needs = frozenset({CONTRAST})

    def reduce(self, view: Any) -> Selection:
        assert view.read(CONTRAST) is view.read(CONTRAST)
        return Selection.top_k(view.read(CONTRAST), view.counts // 2, valid=view.valid)


class Sneaking(VisionReducer):
    """Reads what it did not declare."""

    def reduce(self, view: Any) -> Selection:
        return Selection.top_k(view.read(CONTRAST), view.counts // 2)


class ByLastRow(PrefillFilter):
    """Half of the tokens, by two numbers per token."""

    needs = frozenset({LAST_ROW, Signal.QUERY_ATTENTION})
    queries = "last"

    def acts_after(self, depth: int) -> tuple[int, ...]:
        return (1,)

    def filter(self, view: Any) -> Selection:
        both = view.read(LAST_ROW)
        assert both.shape == (*view.valid.shape, 2)
        SEEN.append((both[..., 0].masked_fill(~view.valid, 0.0), view.attention.mean(dim=1)[:, 0]))
        return Selection.top_k(both[..., 0], view.counts // 2, valid=view.valid)


class ByReceived(CachePolicy):
    """Half of the entries, by what they receive; in decoding, too."""

    needs = frozenset({RECEIVED, Signal.RECEIVED_ATTENTION})
    acts_in_decoding = True

    def after_prefill(self, view: Any) -> Selection:
        SEEN.append((view.read(RECEIVED), view.received))
        return Selection.top_k(view.read(RECEIVED), view.counts // 2, valid=view.valid)

    def after_step(self, view: Any) -> Selection:
        SEEN.append((view.read(RECEIVED), view.received))
        return Selection.top_k(view.read(RECEIVED), view.counts - 1, valid=view.valid)


def answer(pipeline: Pipeline, *prompts: Tensor, images: Tensor, steps: int = 3) -> Any:
    model = tiny_models.llava()
    with pipeline.attach(model) as trace, torch.no_grad():
        out = tiny_models.generate(model, steps, **tiny_models.batch(*prompts), pixel_values=images)
    return trace.last, torch.stack(out.logits, dim=1)


PROMPTS = [tiny_models.prompt(36, 2, 3), tiny_models.prompt(36, 4, 6, seed=1)]


@pytest.mark.parametrize("stages", [{"vision": ByClsRow()}, {"prefill": ByLastRow()}, {"cache": ByReceived()}])
def test_it_has_the_values_of_a_built_in_signal_made_from_the_same(stages: dict[str, Any]) -> None:
    record, logits = answer(Pipeline(**stages), *PROMPTS, images=tiny_models.pixels(2))
    assert len(SEEN) > 0
    for own, built_in in SEEN:
        torch.testing.assert_close(own, built_in, rtol=1e-4, atol=1e-6)
    left = [record.after_vision, record.vision_tokens[-1], None]
    assert 18 in [max(map(int, each)) for each in left if each is not None] or "cache" in stages
    for row, prompt in enumerate(PROMPTS):
        _, alone = answer(Pipeline(**stages), prompt, images=tiny_models.pixels(2)[row : row + 1])
        torch.testing.assert_close(logits[row], alone[0], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", ["qwen2_vl", "qwen2_5_vl"])
def test_towers_of_segments_show_their_attention_image_by_image(name: str) -> None:
    class ByGiven(VisionReducer):
        needs = frozenset({GIVEN, Signal.CLS_ATTENTION})
        without_cls = "received"

        def reduce(self, view: Any) -> Selection:
            own = view.read(GIVEN)
            SEEN.append(
                (
                    own / own.sum(1, keepdim=True),
                    view.cls_attention[:, 0] / view.cls_attention[:, 0].sum(1, keepdim=True),
                )
            )
            return Selection.top_k(own, view.counts // 2, valid=view.valid)

    sample = packed_models.prompt(4, ("image", (1, 8, 12)), 3, ("image", (1, 4, 8)), 4, family=name)
    model = packed_models.model(name)
    with Pipeline(vision=ByGiven()).attach(model), torch.no_grad():
        model(**sample)
    assert len(SEEN) == 2
    for own, built_in in SEEN:
        torch.testing.assert_close(own, built_in, rtol=1e-3, atol=1e-5)


def test_it_follows_tokens_through_merges_and_is_made_only_where_needed() -> None:
    wrapped = Pipeline(vision={"name": "sequence", "steps": [{"name": "tome", "r": 3}, ByClsRow()]})
    record, _ = answer(wrapped, PROMPTS[0], images=tiny_models.pixels())
    assert int(record.after_vision[0]) < 18
    torch.testing.assert_close(*SEEN[0], rtol=1e-4, atol=1e-6)
    CALLS.clear()
    answer(Pipeline(vision="fastervlm"), PROMPTS[0], images=tiny_models.pixels())
    assert CALLS == []
    answer(Pipeline(vision=ByContrast()), PROMPTS[0], images=tiny_models.pixels())
    assert CALLS == ["contrast"]


def test_what_is_not_declared_is_not_there() -> None:
    with pytest.raises(
        UndeclaredSignalError, match=r"'test_contrast' was read but is not there.*add the plug-in's signal"
    ):
        answer(Pipeline(vision=Sneaking()), PROMPTS[0], images=tiny_models.pixels())
    view = random_view([6, 4], (2, 3), reducer=ByContrast(), site=Site.features())
    assert view.read(CONTRAST).shape == (2, 6)
    with pytest.raises(UndeclaredSignalError):
        random_view([6], (2, 3), reducer=Sneaking(), site=Site.features()).read(CLS_ROW)
    assert random_view([6, 4], (2, 3), reducer=ByClsRow(), site=Site.features()).read(CLS_ROW).shape == (2, 6)


def test_needs_are_told_by_name() -> None:
    assert ByClsRow().signals() == {CLS_ROW, Signal.CLS_ATTENTION}
    assert ByContrast().signals() == {CONTRAST, Signal.KEYS}
    assert needs_text(ByClsRow) == "cls_attention, test_cls_row"


@pytest.mark.parametrize(("wrong", "said"), [
    ({"name": "keys", "stage": "vision", "from_view": contrast}, "signal 'keys': the name is taken by the built-in Signal.KEYS"),
    ({"name": "Mine", "stage": "vision", "from_view": contrast}, "signal 'Mine': a name has lower-case letters"),
    ({"name": "mine", "stage": "tower", "from_view": contrast}, "signal 'mine': unknown stage 'tower'"),
    ({"name": "mine", "stage": "vision"}, "signal 'mine': give from_view or from_attention, exactly one"),
    ({"name": "test_contrast", "stage": "vision", "from_view": given}, "the name is taken by .*test_plugin_signals.contrast"),
])  # fmt: skip
def test_wrong_signals_are_refused_in_one_line(wrong: dict[str, Any], said: str) -> None:
    before = dict(module._REGISTERED)
    with pytest.raises(PluginError, match=said) as caught:
        register_signal(**wrong)
    assert "\n" not in str(caught.value)
    assert before == module._REGISTERED


def test_a_function_that_gives_the_wrong_shape_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(CLS_ROW, "from_attention", lambda seen: seen.rows(0, 1)[:, 0, 0])
    with pytest.raises(
        PluginError, match=r"signal 'test_cls_row': .* gave \[1, 37\], expected \[1, 36\]: one number per token"
    ):
        answer(Pipeline(vision=ByClsRow()), PROMPTS[0], images=tiny_models.pixels())


def test_a_policy_that_is_asked_about_several_layers_at_once_cannot_read_one_layers_signal() -> None:
    class Alike(ByReceived):
        layers_alike = True

    with pytest.raises(
        CompatibilityError, match="declares layers_alike, and the plug-in's signal 'test_received' is of one"
    ):
        answer(Pipeline(cache=Alike()), PROMPTS[0], images=tiny_models.pixels())
