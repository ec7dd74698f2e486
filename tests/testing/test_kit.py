"""The kit's own surface: a report, one test per rule in one line, clear lines where something is missing."""

from __future__ import annotations

import builtins
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import Field

from tokcomp import Selection, Site, VisionReducer
from tokcomp.errors import ConfigurationError
from tokcomp.stages import resolve_layer
from tokcomp.testing import RULES, ContractError, check_strategy, checks_of, contract, parametrize_with_checks


class EveryOther(VisionReducer):
    """Keeps every other vision token."""

    def sites(self, depth: int) -> tuple[Site, ...]:
        return (Site.projected(),)

    def reduce(self, view: Any) -> Selection:
        keep = torch.arange(0, view.n_tokens, 2, device=view.device)
        return Selection(keep=keep.expand(view.batch_size, -1))


class EveryNth(EveryOther):
    """Keeps every n-th vision token."""

    step: int = Field(ge=1, description="distance of the tokens that are kept")

    def reduce(self, view: Any) -> Selection:
        place = torch.arange(view.n_tokens, device=view.device).expand_as(view.valid)
        return Selection.from_mask(view.valid & (place % self.step == 0))


@parametrize_with_checks([EveryOther, EveryNth(step=3)], examples=5, skip={"cost": "shown to be skipped"})
def test_strategies_of_a_few_lines_keep_the_contract(strategy: Any, check: Any) -> None:
    assert check.rule.name != "cost"
    check(strategy)


test_contract_in_one_line = contract(EveryOther, rules=["batch", "budget"], examples=5)


def test_a_report_says_what_was_measured() -> None:
    report = check_strategy(EveryNth(step=4), ["model", "cost"])
    assert report.ok
    assert report.strategy == "vision=EveryNth(step=4)"
    assert report.figures["vision tokens"] == "(9, 9, 9) of (36, 36, 36) enter the last layer"
    assert "0.0" not in report.text()
    assert "operations: " in str(report)


def test_what_cannot_be_checked_is_refused_in_one_line() -> None:
    with pytest.raises(
        ConfigurationError, match=r"EveryNth cannot be checked with its defaults \(step\): give an object"
    ):
        check_strategy(EveryNth)
    with pytest.raises(ConfigurationError, match=r"VisionReducer cannot be checked: it does not define reduce"):
        check_strategy(VisionReducer)
    with pytest.raises(ConfigurationError, match="expected a strategy"):
        list(checks_of(torch.nn.Linear))  # type: ignore[arg-type]
    with pytest.raises(ConfigurationError, match="unknown rule 'bach'; did you mean 'batch'"):
        check_strategy(EveryOther, ["bach"])


def test_without_hypothesis_one_line_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    usual = builtins.__import__

    def missing(name: str, *rest: Any, **more: Any) -> Any:
        if name.partition(".")[0] == "hypothesis":
            raise ImportError(name)
        return usual(name, *rest, **more)

    monkeypatch.setattr(builtins, "__import__", missing)
    with pytest.raises(ConfigurationError, match=r"pip install 'tokcomp\[testing\]'"):
        check_strategy(EveryOther)


def test_importing_tokcomp_and_the_kit_needs_no_extra() -> None:
    code = "import tokcomp, tokcomp.testing, sys; print({'pytest', 'hypothesis'} & set(sys.modules))"
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ended.stdout.strip() == "set()"


def test_every_rule_has_a_check_and_a_place_on_the_page() -> None:
    from tokcomp.testing.checks import CHECKS

    assert list(CHECKS) == list(RULES)
    page = (Path(__file__).parents[2] / "docs" / "contract.md").read_text()
    assert set(re.findall(r"^### (.+)$", page, re.MULTILINE)) == set(RULES)
    assert all(rule.text and rule.link == f"docs/contract.md#{name}" for name, rule in RULES.items())


class Lost(EveryOther):
    """Does not know where it acts."""

    def sites(self, depth: int) -> tuple[Site, ...]:
        return (Site.block(depth // 0),)


class TooDeep(EveryOther):
    """Acts where few models have a block."""

    def sites(self, depth: int) -> tuple[Site, ...]:
        return (Site.block(resolve_layer(20, depth, what="block")),)


def test_whatever_a_strategy_raises_is_a_finding_and_its_own_traceback_is_kept() -> None:
    check = next(checks_of(Lost, ["places"]))
    with pytest.raises(ContractError, match="ZeroDivisionError was raised") as caught:
        check(Lost)
    assert isinstance(caught.value.__cause__, ZeroDivisionError)
    assert not check_strategy(Lost, examples=0).kept[0].name.startswith("selection")


def test_fields_that_fit_no_small_model_leave_rules_unchecked() -> None:
    report = check_strategy(TooDeep, ["selection", "places", "model"], examples=0)
    assert report.ok
    assert "beyond this model's 4" in report.unchecked["selection"]
    assert [rule.name for rule in report.kept] == ["places"]
    assert "1 rule kept, 2 not checked, none broken" in report.text()


def test_a_rule_of_another_stage_does_not_apply() -> None:
    assert check_strategy(EveryOther, ["future"]).text() == "vision=EveryOther: no such rule applies to it"
