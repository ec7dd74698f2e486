"""What can stand next on a command line: commands, options, groups and their options, settings and their values."""

from __future__ import annotations

import argparse
import importlib
import re
from collections.abc import Iterable, Sequence

from tokcomp import catalog
from tokcomp.cli.list import GROUPS as LISTED
from tokcomp.errors import ConfigurationError
from tokcomp.experiment.paths import config_dir, option_file, option_names

__all__ = ["candidates"]

_GROUPS = {
    "run": ("vision", "prefill", "cache", "model", "benchmark", "preset", "experiment"),
    "flops": ("vision", "prefill", "cache", "model", "preset"),
}
_OVERRIDING = ("run", "sweep", "view", "flops", "calibrate", "search")
"""The commands whose line goes on with choices and settings."""
_VALUES = {"device": ("auto", "cpu", "cuda", "mps"), "dtype": ("float32", "float16", "bfloat16"),
           "callbacks": ("[tensorboard]", "[mlflow]", "[wandb]"), "hydra/launcher": ("basic", "joblib")}  # fmt: skip


def candidates(words: Sequence[str], commands: Sequence[str]) -> list[str]:
    """What the last of ``words`` (behind ``tokcomp``) may become; a trailing space says that the word is complete.

    Args:
        words: what stands on the line; the last one is being typed and may be empty.
        commands: the names of the commands.
    """
    *before, word = words
    if not before:
        return _fitting(word, [f"{name} " for name in (*commands, "--help", "--version")])
    command = before[0]
    if command not in commands:
        return []
    if word.startswith("-"):
        return _fitting(word, [f"{option} " for option in _options(command)])
    if command in _OVERRIDING:
        return _fitting(word, _override(command, before[1:], word))
    return _fitting(word, _arguments(command, len([each for each in before[1:] if not each.startswith("-")]), word))


def _fitting(word: str, found: Iterable[str]) -> list[str]:
    return sorted({each for each in found if each.startswith(word) and each.strip() != ""})


def _options(command: str) -> list[str]:
    parser = argparse.ArgumentParser()
    importlib.import_module(f"tokcomp.cli.{command}").add_arguments(parser)
    return [option for action in parser._actions for option in action.option_strings]


def _arguments(command: str, place: int, word: str) -> list[str]:
    """The arguments of the commands that take names."""
    if command == "list" and place == 0:
        return [f"{group} " for group in LISTED]
    if command == "new" and place == 0:
        return [f"{stage} " for stage in catalog.STAGES]
    if command == "completion" and place == 0:
        return ["bash ", "zsh "]
    if (command == "show" and place == 0) or command == "check":
        stage, slash, _ = word.partition("/")
        if slash:
            return [f"{stage}/{name} " for name in catalog.names(stage)]
        return [f"{known}/" for known in catalog.STAGES]
    return []


def _override(command: str, before: Sequence[str], word: str) -> list[str]:
    root = "flops" if command == "flops" else "run"
    key, equals, value = word.partition("=")
    if equals:
        start = f"{key}={value[: value.rfind(',') + 1]}" if command in ("sweep", "search") else f"{key}="
        end = "" if command in ("sweep", "search") else " "
        return [f"{start}{choice}{end}" for choice in _values(root, before, key)]
    section, dot, rest = key.partition(".")
    if not dot:
        sections = [f"{name}." for name in ("model", "benchmark") if name in _GROUPS[root]]
        sections += [f"{stage}." for stage in catalog.STAGES if _chosen(before, stage) not in ("", "none")]
        keys = _keys(_text(config_dir() / f"{root}.yaml"))
        tops = [f"{name}." if nested else f"{name}=" for name, nested in keys.items() if name != "defaults"]
        return [*(f"{group}=" for group in _GROUPS[root]), *sections, *tops]
    if command == "search" and section in catalog.STAGES:
        strategy, inner, _ = rest.partition(".")
        if inner:
            return [f"{section}.{strategy}.{field}=" for field in _fields(section, strategy)]
        return [f"{section}.{name}." for name in _chosen(before, section).split(",") if name != "none"]
    return [f"{section}.{field}=" for field in _settings(root, before, section)]


def _values(root: str, before: Sequence[str], key: str) -> Sequence[str]:
    if key in _GROUPS[root]:
        return sorted({*option_names(key), *(catalog.names(key) if key in catalog.STAGES else ())})
    section, _, field = key.partition(".")
    if section in catalog.STAGES:
        entry = catalog.entry(section, _strategy(section, _chosen(before, section)))
        return next((one.choices for one in entry.settings if one.name == field), ()) if entry else ()
    return _VALUES.get(key, ())


def _settings(root: str, before: Sequence[str], section: str) -> Iterable[str]:
    """The settings of a section, of what the line has chosen for it so far."""
    if section in catalog.STAGES:
        return _fields(section, _strategy(section, _chosen(before, section)))
    if section in ("model", "benchmark"):
        option = _chosen(before, section) or {"model": "tiny", "benchmark": "scenes"}[section]
        keys = _keys(_option_text(section, option))
        return [name for name in keys.get(section, keys) if name not in ("name", "defaults")]
    return _keys(_text(config_dir() / f"{root}.yaml")).get(section, ())


def _fields(stage: str, name: str) -> list[str]:
    entry = catalog.entry(stage, name)
    return [one.name for one in entry.settings] if entry else []


def _chosen(before: Sequence[str], group: str) -> str:
    """What the line chooses for a group, by itself or by a preset; empty where it does not."""
    given = dict(word.split("=", 1) for word in before if "=" in word)
    if group not in given and (preset := given.get("preset", "")):
        found = re.search(rf"override /{group}:\s*(\S+)", _option_text("preset", preset))
        return found[1] if found else ""
    return given.get(group, "")


def _strategy(stage: str, option: str) -> str:
    """The strategy behind an option: ``mustdrop`` for ``mustdrop-64``, which names it or builds on its option."""
    if catalog.entry(stage, option) is not None:
        return option
    found = re.search(r"^(?:name:|  -)\s*(\w+)", _option_text(stage, option), flags=re.MULTILINE)
    return found[1] if found else ""


def _option_text(group: str, name: str) -> str:
    try:
        return _text(option_file(group, name))
    except ConfigurationError:  # no such option, which the command itself will say
        return ""


def _text(path: object) -> str:
    with open(str(path), encoding="utf-8") as file:
        return file.read()


def _keys(text: str) -> dict[str, list[str]]:
    """The keys of a file of options, with those one level below each."""
    keys: dict[str, list[str]] = {}
    for line in text.splitlines():
        if found := re.match(r"( {2})?(\w+):", line):
            if found[1] and keys:
                keys[next(reversed(keys))].append(found[2])
            elif not found[1]:
                keys[found[2]] = []
    return keys
