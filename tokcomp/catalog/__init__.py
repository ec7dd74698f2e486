"""What strategies there are, as plain data: read in a moment, without importing torch or a single strategy.

The built-in ones stand in ``strategies.json``, which ``python -m tokcomp.catalog`` writes; where the sources have changed
since, and for plug-ins, the classes are imported and asked once, and the answer is kept in the user's cache folder under a
digest of the sources that it was made from. What is read is therefore never older than the code.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from tokcomp.plugins import points, told

__all__ = ["FILE", "STAGES", "Entry", "Setting", "entries", "entry", "local_options", "names", "sources_digest"]

STAGES = ("vision", "prefill", "cache")
FILE = Path(__file__).with_name("strategies.json")
_PACKAGE = Path(__file__).parent.parent
_KEPT = 20  # answers in the cache folder


@dataclass(frozen=True)
class Setting:
    """One field of a strategy, as a user would say it.

    Attributes:
        type, default: as text. ``meaning``: its description.
        choices: the values that it takes, where they can be listed.
    """

    name: str
    type: str
    default: str
    meaning: str
    choices: tuple[str, ...] = ()


@dataclass(frozen=True)
class Entry:
    """One strategy.

    Attributes:
        stage, name: what a command line chooses it by.
        summary: the first line of its docstring. ``text``: the docstring for reading.
        needs: the signals that it reads, for reading. ``paper``: title, venue, arXiv id.
        without_cls: what it does on a tower without CLS token; empty where that is nothing to it.
        origin: ``built-in``, a distribution with its version, or a module.
        settings: its fields.
    """

    stage: str
    name: str
    summary: str
    text: str
    needs: str
    paper: str
    without_cls: str
    origin: str
    settings: tuple[Setting, ...]

    @classmethod
    def of(cls, data: dict[str, Any]) -> Entry:
        settings = tuple(Setting(**{**one, "choices": tuple(one["choices"])}) for one in data["settings"])
        return cls(**{**data, "settings": settings})

    def data(self) -> dict[str, Any]:
        return asdict(self)


def sources_digest() -> str:
    """What the built-in strategies' entries depend on: the outlines of their sources, and those of the interfaces."""
    files = [*(path for stage in STAGES for path in (_PACKAGE / stage).glob("*.py")),
             *(_PACKAGE / name for name in ("stages.py", "budget.py", "scored.py", "signals.py")),
             _PACKAGE / "catalog" / "ask.py"]  # fmt: skip
    return _digest(
        (path.relative_to(_PACKAGE).as_posix(), _outline(path.read_text(encoding="utf-8"))) for path in files
    )


def _outline(source: str) -> bytes:
    """A module without imports, comments and the bodies of its functions, which decide what a strategy does and not what is
    told of it."""
    kept, depth = [], None
    for line in source.splitlines():
        text = line.strip()
        indent = len(line) - len(line.lstrip())
        imports = indent == 0 and text.startswith(("import ", "from "))  # elsewhere it is a line of a docstring
        if not text or text.startswith("#") or imports:
            continue
        if depth is not None and (indent > depth or text[0] in ")]"):
            continue
        depth = indent if text.startswith(("def ", "async def ")) else None
        kept.append(line)
    return "\n".join(kept).encode()


def _digest(files: Iterable[tuple[str, bytes]]) -> str:
    digest = hashlib.sha256()
    for name, content in sorted(files):
        digest.update(f"{name}\0{len(content)}\0".encode())
        digest.update(content)
    return digest.hexdigest()[:20]


def entries(stage: str | None = None) -> tuple[Entry, ...]:
    """All strategies, or those of one stage: built-in ones, then those of installed packages, then those that option files of
    the working folder name by a dotted path; each part by name."""
    return tuple(one for one in (*_built_in(), *_of_plugins()) if stage in (None, one.stage))


def names(stage: str) -> tuple[str, ...]:
    """The names of one stage's strategies."""
    return tuple(sorted({one.name for one in entries(stage)}))


def entry(stage: str, name: str) -> Entry | None:
    """One strategy, or None where none has this name."""
    return next((one for one in entries(stage) if one.name == name), None)


@cache
def _built_in() -> tuple[Entry, ...]:
    digest = sources_digest()
    shipped = json.loads(FILE.read_text(encoding="utf-8")) if FILE.is_file() else {}
    if shipped.get("digest") == digest:
        return tuple(map(Entry.of, shipped["entries"]))

    def ask() -> tuple[list[Entry], bool]:
        from tokcomp.catalog.ask import ask_built_in

        return ask_built_in(), True

    return _kept(digest, ask)


def _of_plugins() -> tuple[Entry, ...]:
    chosen = local_options()
    found = points("tokcomp.strategies")
    if not found and not chosen:
        return ()
    modules = {point.module for point in found} | {path.partition(":")[0] for path in chosen.values()}
    parts = [sources_digest(), *map(told, found), *map(str, chosen.items()),
             *(_digest(_sources(module.partition(".")[0])) for module in sorted(modules))]  # fmt: skip
    key = hashlib.sha256("\n".join(parts).encode()).hexdigest()[:20]

    def ask() -> tuple[list[Entry], bool]:
        from tokcomp.catalog.ask import ask_plugins

        return ask_plugins(chosen)

    return _kept(key, ask)


def local_options() -> dict[tuple[str, str], str]:
    """The dotted paths of the classes that option files in the working folder name, by stage and name of the option."""
    found = {}
    for stage in STAGES:
        for path in sorted((Path.cwd() / "configs" / stage).glob("*.yaml")):
            for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
                key, _, value = line.partition(":")
                value = value.partition("#")[0].strip().strip("'\"")
                if key in ("_target_", "name") and ("." in value or ":" in value):
                    found[stage, path.stem] = value
    return found


def _sources(top: str) -> list[tuple[str, bytes]]:
    """The Python files of a top-level module or package, found without importing it."""
    here = [Path.cwd() / f"{top}.py"]
    try:
        spec = find_spec(top)
    except (ImportError, ValueError):  # a module that is half there: whoever imports it will tell
        spec = None
    if spec is not None and spec.submodule_search_locations:
        return [(path.relative_to(folder).as_posix(), path.read_bytes()) for folder in spec.submodule_search_locations
                for path in Path(folder).rglob("*.py")]  # fmt: skip
    files = [Path(spec.origin)] if spec is not None and spec.origin else here
    return [(path.name, path.read_bytes()) for path in files if path.is_file()]


def _kept(key: str, make: Callable[[], tuple[list[Entry], bool]]) -> tuple[Entry, ...]:
    """What is in the cache folder under ``key``, or made now and put there if it is complete."""
    folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "tokcomp" / "catalog"
    path = folder / f"{key}.json"
    if path.is_file():
        try:
            return tuple(map(Entry.of, json.loads(path.read_text(encoding="utf-8"))))
        except (ValueError, KeyError, TypeError):
            path.unlink(missing_ok=True)  # cut short when it was written: made again below
    made, complete = make()
    there = next(parent for parent in folder.parents if parent.exists())
    if complete and os.access(there, os.W_OK):
        folder.mkdir(parents=True, exist_ok=True)
        part = path.with_suffix(f".{os.getpid()}")
        part.write_text(json.dumps([one.data() for one in made]), encoding="utf-8")
        part.replace(path)
        for old in sorted(folder.glob("*.json"), key=lambda each: each.stat().st_mtime)[:-_KEPT]:
            old.unlink(missing_ok=True)
    return tuple(made)
