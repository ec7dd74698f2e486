"""Makes the comparison of all strategies: brings each to 50, 25, 11 and 6 %, runs it, and draws the curves.

    python docs/library.py --samples 200 --workers 2          # all of it; goes on where it was stopped
    python docs/library.py --dry-run                          # how each strategy is brought to each budget, nothing run
    python docs/library.py --only vision/tome cache/h2o       # some of it
    python docs/library.py --draw                             # the curves from the committed records
    python docs/library.py --reasons                          # what has no entry, and why; nothing run

Records are kept in the store under --store, keyed by configuration and code, so that what is there is not made again; their
short form is committed to docs/results/library, from which the site's tables are made.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from functools import cache, partial
from pathlib import Path
from typing import Any

DOCS = Path(__file__).resolve().parent
sys.path.insert(0, str(DOCS / "hooks"))

import comparison  # noqa: E402, from docs/hooks
import tables  # noqa: E402, from docs/hooks

from tokcomp.benchmarks.base import Sample  # noqa: E402
from tokcomp.experiment.compose import compose  # noqa: E402
from tokcomp.experiment.config import RunConfig  # noqa: E402
from tokcomp.experiment.library import RULES, SHARES, Cell, Searched, Without, cells, settle  # noqa: E402
from tokcomp.experiment.store import Store, key_of  # noqa: E402
from tokcomp.experiment.worker import execute, model_of  # noqa: E402

RESULTS, IMAGES = DOCS / "results" / "library", DOCS / "images"

ADAPTED = {("vision", "mustdrop"): {"merge_layer": 5}}
"""Fields that the embedded model asks for: its first tower blocks see one patch each, which MustDrop would merge by brightness
alone (docs: Results)."""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--samples", type=int, default=200, help="questions of every run")
    parser.add_argument(
        "--calibration", type=int, default=40, help="questions of the training split that budgets are met on"
    )
    parser.add_argument("--workers", type=int, default=1, help="processes")
    parser.add_argument("--only", nargs="*", default=[], metavar="STAGE/NAME", help="these strategies")
    parser.add_argument(
        "--shares", nargs="*", default=list(SHARES), choices=[*SHARES], help="these budgets, in per cent"
    )
    parser.add_argument("--store", type=Path, default=Path("outputs/library"), help="where the full records are kept")
    parser.add_argument("--results", type=Path, default=RESULTS, help="where the short records are committed")
    parser.add_argument("--dry-run", action="store_true", help="tell the settings, run nothing")
    parser.add_argument("--draw", action="store_true", help="draw the committed records, run nothing")
    parser.add_argument("--reasons", action="store_true", help="renew the reasons that are declared, run nothing")
    options = parser.parse_args()
    if options.reasons:
        renew_reasons(options.results)
        return 0
    failed = 0 if options.draw else make(options)
    if not options.dry_run and not options.only:
        comparison.draw(options.results, IMAGES)
    return 1 if failed else 0


def make(options: argparse.Namespace) -> int:
    """Make every line that is not there yet; how many failed."""
    wanted, failed, reasons = cells(options.only, options.shares), 0, {}
    for number, (cell, outcome) in enumerate(_settled(wanted, options), start=1):
        told = outcome if cell.fields is None else f"{_choice(cell)}: {outcome}"
        sys.stdout.write(f"{number}/{len(wanted)} {cell.stage}/{cell.name} at {cell.per_cent} %: {told}\n")
        sys.stdout.flush()
        if cell.fields is None:
            reasons[cell.key] = cell.reason
        failed += outcome.startswith("failed")
    if not options.dry_run and not options.only:
        options.results.mkdir(parents=True, exist_ok=True)
        _write_reasons(options.results / comparison.REASONS, reasons)
    return failed


def renew_reasons(results: Path) -> None:
    """Write the declared reasons anew; those that a calibration found stay as long as the strategy is calibrated."""
    path = results / comparison.REASONS
    lines = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
    found = {one["key"]: one["reason"] for one in map(json.loads, lines)}
    reasons = {}
    for cell in cells():
        rule = RULES.get((cell.stage, cell.name))
        if isinstance(rule, Without):
            reasons[cell.key] = rule.reason
        elif isinstance(rule, Searched) and cell.key in found:
            reasons[cell.key] = found[cell.key]
    _write_reasons(path, reasons)


def _write_reasons(path: Path, reasons: dict[str, str | None]) -> None:
    written = [json.dumps({"key": key, "reason": reason}) + "\n" for key, reason in sorted(reasons.items())]
    path.write_text("".join(written), encoding="utf-8")


def _settled(wanted: Sequence[Cell], options: argparse.Namespace) -> Iterator[tuple[Cell, str]]:
    """Every line with what became of it, as they end."""
    if options.workers == 1:
        yield from (_make_one(cell, options) for cell in wanted)
        return
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(options.workers, mp_context=context, initializer=_one_thread) as pool:
        for done in as_completed([pool.submit(_make_one, cell, options) for cell in wanted]):
            yield done.result()


def _one_thread() -> None:
    import torch

    torch.set_num_threads(1)


def _make_one(cell: Cell, options: argparse.Namespace) -> tuple[Cell, str]:
    """Bring one strategy to one budget, and run it."""
    shared = ["experiment=library", f"benchmark.samples={options.samples}"]
    plain = RunConfig.resolve(compose(shared))
    adapted = ADAPTED.get((cell.stage, cell.name), {})
    cell = settle(cell, model_of(plain), partial(_calibration, options.calibration), adapted)
    if cell.fields is None:
        return cell, f"not reached: {cell.reason}"
    if options.dry_run:
        return cell, "settled" if cell.figure is None else f"settled by calibration at {cell.figure:.4g}"
    overrides = _overrides(cell)
    config = RunConfig.resolve(compose([*shared, *overrides]))
    store = Store(options.store)
    outcome = execute(store, config, sweep=f"library-{os.getpid()}", overrides=overrides, wait=True)
    result = store.good(key_of(config))
    if result is None:
        return cell, f"{outcome}: see {store.folder(key_of(config))}"
    choice = _choice(cell)
    command = f"tokcomp run experiment=library {choice} benchmark.samples={options.samples}"
    tables.write(options.results, tables.Entry(cell.key, "library", choice, command, result))
    return cell, outcome


@cache
def _calibration(samples: int) -> Sequence[Sample]:
    """Questions of the training split: a budget must not be met on what is scored."""
    config = RunConfig.resolve(compose(["experiment=library", "benchmark.split=train", f"benchmark.samples={samples}"]))
    return config.benchmark.load()


def _overrides(cell: Cell) -> list[str]:
    fields = cell.fields or {}
    return [f"{cell.stage}={cell.name}", *(f"{cell.stage}.{name}={_value(value)}" for name, value in fields.items())]


def _choice(cell: Cell) -> str:
    """The overrides as one types them."""
    return " ".join(f"'{text}'" if set(text) & set("[]{} ") else text for text in _overrides(cell))


def _value(value: Any) -> str:
    """A value in Hydra's grammar."""
    if isinstance(value, dict):
        return "{" + ", ".join(f"{name}: {_value(part)}" for name, part in value.items()) + "}"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(map(_value, value)) + "]"
    return "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)


if __name__ == "__main__":
    sys.exit(main())
