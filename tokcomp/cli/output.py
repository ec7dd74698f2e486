"""Whether a file can be written, asked before a command begins its work."""

from __future__ import annotations

from pathlib import Path

from tokcomp.errors import ConfigurationError

__all__ = ["refuse_unwritable"]


def refuse_unwritable(out: Path) -> None:
    """Try to open ``out`` for writing; what it holds stays, and a file that was not there is not left behind.

    Raises:
        ConfigurationError: it is a folder, its folder is missing, or the system refuses.
    """
    folder = out.absolute().parent
    try:
        if out.is_dir():
            raise ConfigurationError(f"{out} cannot be written: it is a folder, give the name of a file")
        if not folder.is_dir():
            raise ConfigurationError(f"{out} cannot be written: {folder} is no folder")
        there = out.exists()
        with out.open("ab"):
            pass
        if not there:
            out.unlink()
    except OSError as error:
        raise ConfigurationError(f"{out} cannot be written: {error.strerror}: give another --out") from error
