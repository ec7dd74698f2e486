"""Makes everything in the README and on the site that was measured: results, tables, pictures.

    python docs/generate.py                  # all of it
    python docs/generate.py results          # docs/results/*.json, then the README's tables
    python docs/generate.py pictures readme
    python docs/generate.py pictures --only vision cache/snapkv

Runs that are there already are made again; `--samples` says on how many questions.
"""

from __future__ import annotations

import argparse
import re
import shlex
import sys
import tempfile
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

DOCS = Path(__file__).resolve().parent
sys.path[:0] = [str(DOCS), str(DOCS / "hooks")]

import gallery  # noqa: E402, from docs
import tables  # noqa: E402, from docs/hooks

from tokcomp.cli.main import main as tokcomp  # noqa: E402
from tokcomp.embedded import question_set  # noqa: E402
from tokcomp.experiment.compose import compose  # noqa: E402
from tokcomp.experiment.config import RunConfig  # noqa: E402
from tokcomp.experiment.run import run_recorded  # noqa: E402

README = DOCS.parent / "README.md"
PARTS = ["results", "pictures", "readme"]

PRESETS = (
    "preset=mustdrop",
    "preset=mustdrop vision.merge_layer=5",
    "preset=tome",
    "preset=fastv",
    "preset=h2o",
    "preset=tome+fastv+h2o",
    "preset=mustdrop+h2o vision.merge_layer=5",
    "preset=mustdrop-64 vision.merge_layer=5 prefill.positions=keep cache.positions=keep",
)
BUDGETS = (
    "vision=tome vision.r=12",
    "vision=uniform vision.keep_tokens=72",
    "vision=random vision.keep_tokens=72",
    "vision=mustdrop vision.merge_layer=5",
    "vision=random vision.keep_tokens=54",
    "vision=tome vision.r=18",
    "vision=fastervlm vision.keep_tokens=36",
    "vision=pool",
    "vision=uniform vision.keep_tokens=36",
    "vision=random vision.keep_tokens=36",
    "vision=tome vision.r=21",
    "vision=fastervlm vision.keep_tokens=20",
    "vision=uniform vision.keep_tokens=20",
    "vision=random vision.keep_tokens=20",
)
INSIDE = (
    "prefill=fastv prefill.keep_tokens=16",
    "prefill=random prefill.keep_tokens=16",
    "prefill=fastv prefill.layer=1 prefill.keep_tokens=16",
    "prefill=random prefill.layer=1 prefill.keep_tokens=16",
)
TABLES = {"presets": PRESETS, "budgets": BUDGETS, "inside": INSIDE}
VIEW = "preset=mustdrop-64 vision.merge_layer=5 prefill.positions=keep cache.positions=keep"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", choices=[*PARTS, []], help="what to make")
    parser.add_argument("--only", nargs="+", default=[], help="pictures of these stages or strategies only")
    parser.add_argument("--samples", type=int, default=500, help="questions of every run")
    options = parser.parse_args()
    parts = options.parts or PARTS
    if "results" in parts:
        results(options.samples)
    if "pictures" in parts:
        pictures(options.only)
    if "readme" in parts or "results" in parts:
        readme()
    return 0


def results(samples: int) -> None:
    """Run every line of the tables and commit its record; records of lines that are gone go with them."""
    for old in (DOCS / "results").glob("*.json"):
        old.unlink()
    for table in TABLES:
        make(table, samples)


def make(table: str, samples: int) -> None:
    """Run every line of one table and commit its record."""
    for number, choice in enumerate(TABLES[table]):
        shared = f"model=tiny benchmark=scenes benchmark.samples={samples}"
        if table != "presets":
            shared += " measure.timing=false measure.memory=false"
        sys.stderr.write(f"tokcomp run {choice} {shared}\n")
        config = RunConfig.resolve(compose(f"{choice} {shared}".split()))
        with tempfile.TemporaryDirectory() as folder:
            result = run_recorded(config, Path(folder), load=lambda _: gallery.model())
        command = f"tokcomp run {choice} {shared}"
        tables.write(DOCS / "results", tables.Entry(f"{table}-{number:02d}", table, choice, command, result))


def pictures(only: Sequence[str] = ()) -> None:
    """The scene and its picture by `tokcomp view`, and the gallery: what each strategy leaves of the same scenes.

    Args:
        only: stages (``vision``) or strategies (``vision/tome``) of the gallery; empty: all, and the scene.
    """
    images = DOCS / "images"
    images.mkdir(exist_ok=True)
    if not only:
        scene = question_set(1, kinds=["describe"], seed=gallery.SEEDS[0])[0]
        scene.image.save(images / "scene.png")
        if tokcomp(
            ["view", str(images / "scene.png"), scene.question, *VIEW.split(), "--out", str(images / "view.png")]
        ):
            raise SystemExit("tokcomp view failed")
    gallery.make(only)


def readme() -> None:
    """Put the tables of the committed results between the README's markers."""
    entries = tables.read(DOCS / "results")
    makers: dict[str, Callable[[], str]] = {
        "results": partial(tables.comparison, entries),
        "budgets": partial(tables.budgets, entries),
        "kinds": tables.kinds,
        "view": partial(view_command),
    }
    README.write_text(filled(README.read_text(encoding="utf-8"), makers), encoding="utf-8")


def filled(text: str, makers: dict[str, Callable[[], str]]) -> str:
    """``text`` with what stands between each pair of markers made anew."""
    for name, make in makers.items():
        begin, end = f"<!-- {name}:begin -->", f"<!-- {name}:end -->"
        if begin not in text or end not in text:
            raise SystemExit(f"the README has no {begin} … {end}")
        text = re.sub(f"{begin}.*?{end}", lambda _, b=begin, e=end, m=make: f"{b}\n{m()}\n{e}", text, flags=re.DOTALL)
    return text


def view_command() -> str:
    """The command that made the picture, and the picture."""
    question = shlex.quote(question_set(1, kinds=["describe"], seed=gallery.SEEDS[0])[0].question)
    command = f"tokcomp view docs/images/scene.png {question} {VIEW} --out docs/images/view.png"
    return f"```sh\n{command}\n```\n\n![What each stage kept of the scene](docs/images/view.png)"


if __name__ == "__main__":
    sys.exit(main())
