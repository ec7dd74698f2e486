"""What strategies of one's own give back that cannot be applied, each refused in one line that names the strategy."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from tests.tiny_models import llava, pixels, prompt
from tokcomp import (
    CachePolicy,
    CacheView,
    Pipeline,
    PrefillFilter,
    PrefillView,
    Selection,
    Site,
    VisionReducer,
    VisionView,
)
from tokcomp.errors import CompatibilityError, TokcompError

INTS = torch.arange(4)
WRONG = [
    (None, "returned NoneType, expected a tokcomp.Selection"),
    (INTS, "returned Tensor, expected a tokcomp.Selection"),
    (Selection(keep=INTS.expand(3, -1)), r"returned a selection of shape \(3, 4\), expected 1 rows"),
    (Selection(keep=INTS), r"returned a selection of shape \(4,\)"),
    (Selection(keep=INTS[None].float()), "returned indices that are torch.float32, expected integers"),
]


def run(pipeline: Pipeline) -> None:
    model = llava()
    with pipeline.attach(model), torch.no_grad():
        model(input_ids=prompt(36, 4, 6), pixel_values=pixels(), use_cache=True)


def refused(pipeline: Pipeline, words: str, error: type[Exception] = TokcompError) -> None:
    with pytest.raises(error, match=words) as caught:
        run(pipeline)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("given", "words"), WRONG)
def test_reducers(given: Any, words: str) -> None:
    class Odd(VisionReducer):
        name = "odd"

        def sites(self, depth: int) -> tuple[Site, ...]:
            return (Site.features(),)

        def reduce(self, view: VisionView) -> Selection:
            return given  # type: ignore[no-any-return]

    refused(Pipeline(Odd()), f"vision strategy 'odd' {words}")


@pytest.mark.parametrize(("given", "words"), WRONG)
def test_filters(given: Any, words: str) -> None:
    class Odd(PrefillFilter):
        name = "odd"

        def acts_after(self, depth: int) -> tuple[int, ...]:
            return (1,)

        def filter(self, view: PrefillView) -> Selection:
            return given  # type: ignore[no-any-return]

    refused(Pipeline(None, Odd()), f"prefill strategy 'odd' {words}")


@pytest.mark.parametrize(("given", "words"), WRONG[1:])
def test_policies(given: Any, words: str) -> None:
    class Odd(CachePolicy):
        name = "odd"

        def after_prefill(self, view: CacheView) -> Selection | None:
            return given  # type: ignore[no-any-return]

    refused(Pipeline(None, None, Odd()), f"cache policy 'odd' {words}")


@pytest.mark.parametrize("given", [None, (4,), "features", (Site.features(), "projected")])
def test_places(given: Any) -> None:
    class Odd(VisionReducer):
        def sites(self, depth: int) -> tuple[Site, ...]:
            return given  # type: ignore[no-any-return]

        def reduce(self, view: VisionView) -> Selection:
            return Selection.from_mask(view.valid)

    refused(
        Pipeline(Odd()), r"sites\(\) of vision strategy 'Odd' returned .*expected a tuple of places", CompatibilityError
    )
