"""Hold strategies against the contract: what each gets wrong, in plain words, with the smallest input that shows it.

The exit status is 0 where every rule is kept, 1 where one is broken and 2 where something cannot be checked at all.

examples:
  tokcomp check my_package.my_idea            # every strategy that the module registers
  tokcomp check my_package.my_idea:MyIdea     # one class, registered or not
  tokcomp check vision/mustdrop --rule batch
  tokcomp check --all
  tokcomp check --rules                       # what the rules are"""

from __future__ import annotations

import argparse
import tempfile

from tokcomp.errors import ConfigurationError

__all__ = ["add_arguments", "execute"]

FOUND = 1
"""Exit status where a rule is broken."""
LEFT_OUT = 2
"""Exit status where none is, but something could not be checked."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("targets", nargs="*", metavar="TARGET", help="STAGE/NAME, module, module:Class or file.py")
    parser.add_argument("--all", action="store_true", help="every registered strategy, plug-ins included")
    parser.add_argument("--rule", action="append", metavar="NAME", help="check this rule only (may be given again)")
    parser.add_argument("--rules", action="store_true", help="list the rules")
    parser.add_argument("--examples", type=int, default=None, metavar="N",
                        help="inputs drawn for each rule, beside those that are always tried")  # fmt: skip
    parser.add_argument("--verbose", action="store_true", help="also print what was measured and what was not checked")


def execute(options: argparse.Namespace) -> int:
    from tokcomp.testing.extra import hypothesis_home
    from tokcomp.testing.rules import RULES, find_rules

    if options.rules:
        for rule in RULES.values():
            print(f"{rule.name:<13} {rule.text}")
        return 0
    if bool(options.targets) == options.all:
        raise ConfigurationError("give STAGE/NAME, a module, module:Class or a file.py to check, or --all")
    if options.examples is not None and options.examples < 0:
        raise ConfigurationError(f"--examples={options.examples}: give 0 or more")
    find_rules(options.rule)
    with tempfile.TemporaryDirectory() as folder, hypothesis_home(folder):
        return _checked(options)


def _checked(options: argparse.Namespace) -> int:
    from tokcomp.testing.instances import UncheckableError
    from tokcomp.testing.kit import EXAMPLES, check_strategy
    from tokcomp.testing.targets import every_strategy, find_strategies

    strategies = every_strategy() if options.all else [cls for name in options.targets for cls in find_strategies(name)]
    examples = EXAMPLES if options.examples is None else options.examples
    broken = left_out = 0
    for strategy in strategies:
        try:
            report = check_strategy(strategy, options.rule, examples=examples)
        except UncheckableError as error:
            if len(strategies) == 1:
                raise
            left_out += 1
            print(f"{strategy.stage}={strategy.name}: not checked: {error}", flush=True)
            continue
        broken += not report.ok
        print(report.text(verbose=options.verbose or len(strategies) == 1), flush=True)
    if len(strategies) > 1:
        print(_summary(len(strategies) - left_out, broken, left_out))
    return FOUND if broken else LEFT_OUT if left_out else 0


def _summary(checked: int, broken: int, left_out: int) -> str:
    found = f"{broken} of them with findings" if broken else "no findings"
    return f"{checked} strateg{'y' if checked == 1 else 'ies'} checked, {found}" + (
        f"; {left_out} could not be checked" if left_out else ""
    )
