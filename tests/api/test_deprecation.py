"""Old names go on working, warn, and are gone when it was promised."""

from __future__ import annotations

import warnings
from collections.abc import Iterator

import pytest

from tokcomp import Pipeline, __version__, deprecation
from tokcomp.deprecation import (
    Renamed,
    TokcompDeprecationWarning,
    overdue,
    renamed_fields,
    renamed_option,
    renamed_parameter,
    renamed_strategy,
)
from tokcomp.errors import ConfigurationError
from tokcomp.experiment.axes import read_axes
from tokcomp.experiment.compose import compose
from tokcomp.experiment.config import RunConfig
from tokcomp.prefill.fastv import FastV

WHEN = {"since": "0.2", "removed_in": "0.4"}


@pytest.fixture(autouse=True)
def _nothing_stays(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(deprecation, "DECLARED", [])
    monkeypatch.setattr(deprecation, "_FIELDS", {})
    monkeypatch.setattr(deprecation, "_OPTIONS", {})
    yield
    monkeypatch.undo()


def test_a_parameter() -> None:
    @renamed_parameter("n", "count", **WHEN)
    def doubled(count: int) -> int:
        return 2 * count

    with pytest.warns(TokcompDeprecationWarning, match=r"^the parameter 'n' of .*doubled is called 'count' since 0.2; "
                      r"the old name will be removed in 0.4$") as told:  # fmt: skip
        assert doubled(n=3) == 6  # type: ignore[call-arg]
    assert told[0].filename == __file__
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert doubled(3) == doubled(count=3) == 6
    with pytest.raises(TypeError, match="give 'count' alone"):
        doubled(count=1, n=2)  # type: ignore[call-arg]


def test_a_field_in_python_on_the_command_line_and_in_files() -> None:
    renamed_fields("prefill", "fastv", {"share": "keep_ratio"}, **WHEN)
    said = "the field 'share' of prefill 'fastv' is called 'keep_ratio' since 0.2; the old name will be removed in 0.4"
    with pytest.warns(TokcompDeprecationWarning, match=said):
        assert FastV(share=0.3).keep_ratio == 0.3  # type: ignore[call-arg]
    with pytest.warns(TokcompDeprecationWarning, match=said):
        assert Pipeline(prefill={"name": "fastv", "share": 0.3}) == Pipeline(
            prefill={"name": "fastv", "keep_ratio": 0.3}
        )
    with pytest.warns(TokcompDeprecationWarning, match=said):
        config = RunConfig.resolve(compose(["prefill=fastv", "prefill.share=0.3"]))
    assert config.pipeline.spec()["prefill"]["keep_ratio"] == 0.3  # type: ignore[index]
    with pytest.warns(TokcompDeprecationWarning, match=said):
        assert read_axes(["prefill=fastv", "prefill.share=0.3,0.5"]).swept == {
            "prefill.keep_ratio": ("prefill.keep_ratio=0.3", "prefill.keep_ratio=0.5")
        }
    with pytest.raises(ConfigurationError, match="prefill 'fastv': give keep_ratio alone, share is its old name"):
        FastV(share=0.3, keep_ratio=0.5)  # type: ignore[call-arg]


def test_strategies_and_options() -> None:
    renamed_strategy("prefill", "fast", "fastv", **WHEN)
    renamed_option("model", "small", "tiny", **WHEN)
    with pytest.warns(TokcompDeprecationWarning, match="prefill=fast is called 'fastv' since 0.2"):
        assert Pipeline(prefill={"name": "fast", "layer": 3}) == Pipeline(prefill={"name": "fastv", "layer": 3})
    with pytest.warns(TokcompDeprecationWarning) as told:
        config = RunConfig.resolve(compose(["prefill=fast", "prefill.layer=3", "model=small"]))
    assert {str(one.message).partition(" ")[0] for one in told} == {"prefill=fast", "model=small"}
    assert (config.prefill, config.model.name) == (FastV(layer=3), "tiny")
    with pytest.warns(TokcompDeprecationWarning):
        assert read_axes(["prefill=none,fast"]).swept == {"prefill": ("prefill=none", "prefill=fastv")}


def test_what_is_overdue_is_found() -> None:
    renamed_option("model", "small", "tiny", **WHEN)
    assert overdue("0.3.9") == []
    assert [one.new for one in overdue("0.4.0")] == [one.new for one in overdue("1.0")] == ["tiny"]
    with pytest.raises(ValueError, match=r"it cannot be removed in 0.2 when 0.2 renamed it"):
        Renamed("x", "y", since="0.2", removed_in="0.2")
    with pytest.raises(ValueError, match="'soon' is no version"):
        Renamed("x", "y", since="0.2", removed_in="soon")


def test_tokcomps_own_old_names_are_gone_when_it_was_promised(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    late = [f"{one.what} (promised for {one.removed_in})" for one in overdue(__version__)]
    assert not late, f"remove these old names, the version is {__version__}: {', '.join(late)}"
