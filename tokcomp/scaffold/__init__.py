"""What ``tokcomp new`` writes: a strategy that works, its option file, its tests, and a package around them."""

from __future__ import annotations

import importlib.util
import keyword
import re
from pathlib import Path

from tokcomp import __version__, catalog
from tokcomp.errors import ConfigurationError, suggest

__all__ = ["render", "write"]

_TEMPLATES = Path(__file__).with_name("templates")


def render(stage: str, name: str, *, package: bool) -> dict[str, str]:
    """The files of a new strategy, by path.

    Raises:
        ConfigurationError: no such stage, or a name that cannot be used or is taken.
    """
    _refuse(stage, name)
    inside = f"tokcomp_{name}"
    module = f"{inside}.{name}" if package else name
    _refuse_module(inside if package else name)
    cls = "".join(part.capitalize() for part in name.split("_"))
    words = {
        "stage": stage,
        "name": name,
        "Class": cls,
        "Title": " ".join(name.split("_")).capitalize(),
        "module": module,
        "package": inside,
        "dist": inside.replace("_", "-"),
        "version": __version__,
        "chosen": f"name: {name}" if package else f"_target_: {module}:{cls}",
    }
    files = {f"{name}.py": f"{stage}.py", f"configs/{stage}/{name}.yaml": f"{stage}.yaml"}
    if not package:
        files[f"test_{name}.py"] = f"test_{stage}.py"
        return {path: _filled(template, words) for path, template in files.items()}
    files = {f"{inside}/{path}": template for path, template in files.items()}
    files |= {
        f"{inside}/__init__.py": "init.py",
        f"tests/test_{name}.py": f"test_{stage}.py",
        "pyproject.toml": "pyproject.toml",
        "README.md": "README.md",
    }
    return {f"{words['dist']}/{path}": _filled(template, words) for path, template in files.items()}


def _filled(template: str, words: dict[str, str]) -> str:
    text = (_TEMPLATES / f"{template}.txt").read_text(encoding="utf-8")
    return re.sub("@@([A-Za-z]+)@@", lambda found: words[found[1]], text)


def _refuse(stage: str, name: str) -> None:
    if stage not in catalog.STAGES:
        raise ConfigurationError(
            f"unknown stage '{stage}'{suggest(stage, catalog.STAGES)} known: {', '.join(catalog.STAGES)}"
        )
    if keyword.iskeyword(name):
        raise ConfigurationError(f"'{name}' is a word of Python: give another name, such as my_{name}")
    if not re.fullmatch(r"[a-z][a-z0-9]*(_[a-z0-9]+)*", name) or name == "none":
        raise ConfigurationError(
            f"'{name}' cannot be the name of a strategy: give lower-case letters, digits and single underscores, such as my_idea"
        )
    known = catalog.entry(stage, name)
    if known is not None and (stage, name) not in catalog.local_options():  # those may become a package
        raise ConfigurationError(f"the name '{name}' is taken by a {stage} strategy ({known.origin}): choose another")


def _refuse_module(top: str) -> None:
    if importlib.util.find_spec(top) is not None:
        raise ConfigurationError(
            f"there is a Python module '{top}' already, which the new file would hide: choose another name"
        )


def write(files: dict[str, str], out: Path) -> list[Path]:
    """Write them below ``out``, all or none.

    Raises:
        ConfigurationError: one of them is there already, or cannot be written.
    """
    paths = [out / path for path in files]
    there = next((path for path in paths if path.exists()), None)
    if there is not None:
        raise ConfigurationError(
            f"{there} is there already: nothing was written; choose another name, or another --out"
        )
    written: list[Path] = []
    try:
        for path, text in zip(paths, files.values(), strict=True):
            path.parent.mkdir(parents=True, exist_ok=True)
            written.append(path)
            path.write_text(text, encoding="utf-8")
    except OSError as error:
        for path in written:
            path.unlink(missing_ok=True)
        raise ConfigurationError(f"{error.filename} cannot be written: {error.strerror}; give another --out") from error
    return paths
