"""Every registered strategy keeps the contract: a new one is tested by being there."""

from __future__ import annotations

from typing import Any

import pytest

from tests.contracts.settings import defaults, variants
from tokcomp.testing import RULES, check_strategy, parametrize_with_checks

ONCE = ("model", "description", "device", "state", "needs", "pickle")
"""Rules about the class rather than its settings; tests/runner takes other settings through models."""


@parametrize_with_checks(defaults(), examples=0)
def test_with_its_defaults(strategy: Any, check: Any) -> None:
    check(strategy)


@pytest.mark.parametrize("strategy", variants(), ids=repr)
def test_with_other_settings(strategy: Any) -> None:
    report = check_strategy(strategy, [rule for rule in RULES if rule not in ONCE], examples=0)
    assert report.ok, report.text()
    assert set(report.unchecked) <= {"one-token", "odd-grid", "ragged-batch", "bfloat16"}, report.text()
