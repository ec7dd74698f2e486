"""Every rule finds the strategies that break it, and says what is wrong; the strategies they are made of break none."""

from __future__ import annotations

from typing import Any

import pytest

from tests.testing.wrong_strategies import WRONG, Filter, Policy, Reducer
from tokcomp.testing import RULES, check_strategy, parametrize_with_checks


@pytest.mark.parametrize(("strategy", "rule", "words"), WRONG, ids=lambda value: getattr(value, "__name__", str(value)))
def test_is_caught_by_its_rule_in_plain_words(strategy: Any, rule: str, words: str) -> None:
    report = check_strategy(strategy, [rule], examples=0)
    assert report.broken() == (rule,), report.text()
    text = str(report.findings[0])
    assert words in text
    assert f"docs/contract.md#{rule}" in text


def test_every_rule_has_a_strategy_that_breaks_it() -> None:
    assert {rule for _, rule, _ in WRONG} == set(RULES)


@parametrize_with_checks([Reducer, Filter, Policy], examples=10)
def test_what_they_are_made_of_is_right(strategy: Any, check: Any) -> None:
    check(strategy)


SMALLEST = [
    ("ScalesInPlace", "one image with 1 token of a 1 x 1 grid"),
    ("RoundsUp", "one prompt with 2 vision tokens and 1 text tokens after the image"),
    ("BatchMean", "a batch of "),
    ("KeepsTwice", "one cache with 2 entries"),
]


@pytest.mark.parametrize(("name", "words"), SMALLEST)
def test_the_smallest_failing_input_is_told(name: str, words: str) -> None:
    strategy, rule, _ = next(case for case in WRONG if getattr(case[0], "__name__", "") == name)
    finding = check_strategy(strategy, [rule], examples=10).findings[0]
    assert finding.example.startswith(words)
    assert f"smallest failing input: {finding.example}" in str(finding)


ALONE = ["RoundsUp", "ScalesInPlace", "BatchMean", "OnTheHost", "HalvesOne", "PairsOfRows"]


@pytest.mark.parametrize("name", ALONE)
def test_one_mistake_is_not_told_as_many(name: str) -> None:
    strategy, rule, _ = next(case for case in WRONG if getattr(case[0], "__name__", "") == name)
    report = check_strategy(strategy, [each for each in RULES if each != "model"], examples=0)
    assert report.broken() == (rule,), report.text()
