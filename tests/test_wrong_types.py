"""What Python lets through and tokcomp cannot use: told in one line where it is given, not where it breaks."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from tokcomp import PREFILL, VISION, Pipeline, Selection
from tokcomp.errors import ConfigurationError, PluginError, TokcompError
from tokcomp.vision.tome import ToMe

WRONG: dict[str, tuple[Callable[[], Any], type[TokcompError], str]] = {
    "class for an object": (lambda: Pipeline(vision=ToMe), ConfigurationError, "got the class ToMe: call it"),  # type: ignore[arg-type]
    "list": (lambda: Pipeline(vision=["tome"]), ConfigurationError, "expected a name, .*, got list"),  # type: ignore[arg-type]
    "number for a preset": (lambda: Pipeline.from_preset(64), ConfigurationError, "unknown preset '64'"),  # type: ignore[arg-type]
    "number for a name": (lambda: VISION[3], TokcompError, "unknown vision strategy '3'"),  # type: ignore[index]
    "no model": (lambda: Pipeline("tome").attach(None), ConfigurationError, "model that is loaded .*, got NoneType"),  # type: ignore[arg-type]
    "name of a model": (lambda: Pipeline("tome").attach("llava"), ConfigurationError, "loaded .*, got str"),  # type: ignore[arg-type]
    "class of a model": (lambda: Pipeline("tome").attach(torch.nn.Linear), ConfigurationError, "got the class Linear"),  # type: ignore[arg-type]
    "decorator without call": (lambda: VISION.register(ToMe), PluginError, r'write @VISION.register\("my_idea"\)'),  # type: ignore[arg-type]
    "no class": (lambda: PREFILL.register("mine")(3), PluginError, "is not a subclass of tokcomp.PrefillFilter"),  # type: ignore[arg-type]
}


@pytest.mark.parametrize("case", WRONG)
def test_the_line_says_what_was_given(case: str) -> None:
    make, kind, said = WRONG[case]
    with pytest.raises(kind, match=said) as caught:
        make()
    assert "\n" not in str(caught.value)


def test_a_selection_of_lists_is_refused() -> None:
    with pytest.raises(TypeError, match="keep is a list, expected an integer tensor"):
        Selection(keep=[[0, 1]]).check(n=4)  # type: ignore[arg-type]
