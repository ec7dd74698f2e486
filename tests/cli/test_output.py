"""Whether a file can be written is asked without touching what is there."""

from __future__ import annotations

from pathlib import Path

import pytest

from tokcomp.cli.output import refuse_unwritable
from tokcomp.errors import ConfigurationError


def test_a_file_that_can_be_written_stays_as_it_is(tmp_path: Path) -> None:
    there, new = tmp_path / "there.png", tmp_path / "new.png"
    there.write_text("old")
    refuse_unwritable(there)
    refuse_unwritable(new)
    assert there.read_text() == "old"
    assert not new.exists()


@pytest.mark.parametrize(("name", "said"), [
    (".", "it is a folder, give the name of a file"),
    ("nowhere/mine.png", "nowhere is no folder"),
    ("a" * 300, "give another --out"),
])  # fmt: skip
def test_others_are_refused_in_one_line(tmp_path: Path, name: str, said: str) -> None:
    with pytest.raises(ConfigurationError, match="cannot be written") as caught:
        refuse_unwritable(tmp_path / name)
    assert said in str(caught.value)
