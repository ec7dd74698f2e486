"""Strategies inside strategies: built from plain data, given back as plain data, refused by the name of the inner field."""

from __future__ import annotations

from typing import ClassVar

import pytest
from pydantic import Field

from tokcomp.catalog.ask import type_text
from tokcomp.errors import ConfigurationError
from tokcomp.prefill.fastv import FastV
from tokcomp.specs import PrefillSpec, build_strategy, explain
from tokcomp.stages import PrefillFilter
from tokcomp.types import PrefillView, Selection


class Wrapper(PrefillFilter):
    """Holds others."""

    name: ClassVar[str] = "wrapper"
    steps: tuple[PrefillSpec, ...] = Field(description="the filters")

    def acts_after(self, depth: int) -> tuple[int, ...]:
        return (1,)

    def filter(self, view: PrefillView) -> Selection:
        return self.steps[0].filter(view)


def test_takes_what_a_stage_takes_and_gives_it_back() -> None:
    steps = ["random", {"name": "fastv", "keep_tokens": 5}, FastV(layer=3)]
    wrapper = Wrapper(steps=steps)
    assert [step.name for step in wrapper.steps] == ["random", "fastv", "fastv"]
    assert wrapper.steps[1] == FastV(keep_tokens=5)
    fields = {name: value for name, value in wrapper.spec().items() if name != "name"}
    assert fields["steps"][1] == FastV(keep_tokens=5).spec()
    assert Wrapper(**fields) == wrapper


@pytest.mark.parametrize(
    ("steps", "said"),
    [
        ([{"name": "fastv", "keep_ratio": 2}], r"prefill.wrapper.steps\[0\]: prefill.fastv.keep_ratio=2: "),
        (["fastv", {"name": "fastv", "laier": 2}], r"steps\[1\]: 'laier' is not a setting of prefill 'fastv'; did you"),
        (["fastv", "fastw"], r"steps\[1\]: unknown prefill strategy 'fastw'; did you mean 'fastv'"),
        (["none"], r"steps\[0\]: give the name of a prefill strategy, not none"),
        ([{"layer": 2}], r"steps\[0\]: prefill: give a 'name' with the fields layer"),
    ],
)
def test_says_in_one_line_which_inner_field_is_wrong(steps: list[object], said: str) -> None:
    from pydantic import ValidationError

    with pytest.raises(ValidationError) as caught:
        Wrapper(steps=steps)
    line = explain("prefill", Wrapper, caught.value)
    with pytest.raises(ConfigurationError, match=said):
        raise ConfigurationError(line)
    assert "\n" not in line


def test_a_strategy_of_another_stage_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="of the stage 'prefill', not of 'cache'"):
        build_strategy("cache", FastV())


def test_is_shown_as_what_it_is() -> None:
    assert type_text(Wrapper.model_fields["steps"].annotation) == "list of prefill strategy"
