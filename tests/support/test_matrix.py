"""The committed support matrix is complete, has no failure in it, and still says what a run of some of its cells says."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.models.families import families
from tests.support.matrix import WAYS, cell, measure, pipeline_of, strategies
from tokcomp.cli.main import main
from tokcomp.models.support import matrix, overview

ALL = [f"{stage}/{name}" for stage, name in strategies()]


def test_every_family_and_every_strategy_is_in_it() -> None:
    assert set(matrix()["families"]) == set(families()), "run `make support`"
    assert set(matrix()["cells"]) == set(ALL), "run `make support`"
    for name, row in matrix()["cells"].items():
        assert set(row) == set(families()), f"{name}: run `make support`"


def test_no_cell_failed_and_every_refusal_has_its_reason() -> None:
    for strategy, row in matrix()["cells"].items():
        for family, ways in row.items():
            expected = {way for way in WAYS if way != "video" or families()[family].video is not None}
            assert set(ways) == expected, (strategy, family)
            for way, result in ways.items():
                reason = result.removeprefix("refused: ")
                assert result == "yes" or (reason != result and len(reason) > 20), (strategy, family, way, result)


def test_every_family_works_without_a_strategy_and_with_most() -> None:
    assert all(set(ways.values()) == {"yes"} for ways in matrix()["cells"]["none/none"].values())
    for name, _, counts in overview():
        yes, total = counts["one image"]
        assert yes > total / 2, name


@pytest.mark.parametrize("number", range(12))
def test_a_sample_of_the_cells_is_up_to_date(number: int) -> None:
    """Spread over families, strategies and ways of use."""
    names = list(families())
    name = names[number % len(names)]
    stage, strategy = strategies()[(number * 7 + 3) % len(ALL)]
    way = WAYS[number % len(WAYS)]
    committed = matrix()["cells"][f"{stage}/{strategy}"][name].get(way)
    assert cell(families()[name], pipeline_of(stage, strategy), way) == committed


def test_the_command_measures_what_it_is_asked_for(capsys: pytest.CaptureFixture[str]) -> None:
    name = next(iter(families()))
    found = measure([name], [("none", "none")])
    assert found["families"].keys() == {name}
    assert set(found["cells"]["none/none"][name].values()) == {"yes"}


def test_the_list_of_models_and_the_page_are_made_from_it(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert main(["list", "models"]) == 0
    printed = capsys.readouterr().out
    assert all(name in printed for name in families())
    monkeypatch.syspath_prepend(str(Path(__file__).parents[2] / "docs" / "hooks"))
    import support  # type: ignore[import-not-found]

    page = support.families() + support.strategies()
    assert all(f"`{name}`" in page for name in families())
    found = {  # what differs in the strategy's own name alone is one reason
        result.replace(f"'{strategy.partition('/')[2]}'", "'…'")
        for strategy, row in matrix()["cells"].items()
        for ways in row.values()
        for result in ways.values()
    } - {"yes"}
    for kind in ("refused: ", "failed: "):
        assert page.count(kind) == sum(result.startswith(kind) for result in found)
