"""The contract kit: finds out what a strategy gets wrong, and says it in plain words.

One line in the tests of a plug-in checks every rule (``pip install 'tokcomp[testing]'``)::

    from tokcomp.testing import contract
    from my_package.my_idea import MyIdea

    test_contract = contract(MyIdea)

:func:`check_strategy` gives a report; ``tokcomp check`` prints one. The rules are explained in docs/contract.md.
"""

from __future__ import annotations

from tokcomp.testing.kit import Check, check_strategy, checks_of
from tokcomp.testing.parametrize import contract, parametrize_with_checks
from tokcomp.testing.report import ContractError, Finding, Report, Unchecked
from tokcomp.testing.rules import RULES, Rule
from tokcomp.testing.tiny import tiny_model

__all__ = [
    "RULES",
    "Check",
    "ContractError",
    "Finding",
    "Report",
    "Rule",
    "Unchecked",
    "check_strategy",
    "checks_of",
    "contract",
    "parametrize_with_checks",
    "tiny_model",
]
