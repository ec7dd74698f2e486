"""Nothing that users rely on changes without being announced."""

from __future__ import annotations

import pytest

from tests.api import surface
from tests.api.surface import FILE

HOW = (
    "What users rely on has changed. If that is meant: write it into CHANGELOG.md in the user's words; let a name that goes or "
    "changes live on for two minor releases (tokcomp.deprecation); then run `python -m tests.api.surface`. docs/stability.md "
    "says which changes need which version."
)


def announced(lines: list[str]) -> str:
    """What differs from the announced surface; empty where nothing does."""
    before = FILE.read_text(encoding="utf-8").splitlines()
    gone = [f"- {line}" for line in before if line not in set(lines)]
    new = [f"+ {line}" for line in lines if line not in set(before)]
    return "\n".join([HOW, *gone, *new]) if gone or new else ""


def test_the_public_surface_is_the_announced_one() -> None:
    assert not announced(surface.surface()), announced(surface.surface())


@pytest.mark.parametrize("change", ["gone", "new", "parameter"])
def test_a_change_is_told_with_what_to_do(change: str) -> None:
    lines = surface.surface()
    if change == "gone":
        lines.remove("vision=tome r=0.028")
    elif change == "new":
        lines.append("tokcomp.Novelty")
    else:
        place = next(number for number, line in enumerate(lines) if line.startswith("tokcomp.Pipeline.attach("))
        lines[place] = lines[place].replace("model", "network")
    told = announced(lines)
    assert told.startswith(HOW)
    assert {
        "gone": "\n- vision=tome r=0.028",
        "new": "\n+ tokcomp.Novelty",
        "parameter": "\n+ tokcomp.Pipeline.attach(self, network)",
    }[change] in told


def test_it_holds_every_kind_of_name() -> None:
    lines = FILE.read_text(encoding="utf-8").splitlines()
    for some in ("tokcomp.Signal: ATTENTION_ROWS", "tokcomp.Selection.top_k(cls, scores, k",
                 "tokcomp.VisionView.cls_attention: property",
                 "$ tokcomp new --help --out --package", "vision=tome r=", "tokcomp.register_signal(name, *, stage",
                 "tokcomp.testing.parametrize_with_checks("):  # fmt: skip
        assert any(line.startswith(some) for line in lines), some
