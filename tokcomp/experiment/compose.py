"""Composes configurations with Hydra without leaving a trace in a Hydra application that the caller may have."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from hydra import compose as hydra_compose
from hydra import initialize_config_dir
from hydra.core.config_search_path import ConfigSearchPath
from hydra.core.config_store import ConfigStore
from hydra.core.global_hydra import GlobalHydra
from hydra.core.plugins import Plugins
from hydra.errors import HydraException
from hydra.plugins.search_path_plugin import SearchPathPlugin
from hydra.version import VersionBase
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import MissingMandatoryValue, OmegaConfBaseException
from pydantic import TypeAdapter
from pydantic.fields import FieldInfo

from tokcomp.benchmarks.base import benchmark_class, plugin_names
from tokcomp.deprecation import current_overrides
from tokcomp.errors import ConfigurationError
from tokcomp.experiment.overrides import GROUPS, refuse_unknown, refuse_unreadable
from tokcomp.experiment.paths import config_dir, config_dirs, option_names
from tokcomp.registry import REGISTRIES

__all__ = ["VERSION_BASE", "compose", "first_lines", "own_hydra", "register_plugins"]

VERSION_BASE = "1.3"
_BY_PATH = (*REGISTRIES, "benchmark")
_PATH = re.compile(r"[A-Za-z_][\w.]*(?::[A-Za-z_][\w.]*|\.[A-Za-z_]\w*)")


class _PluginConfigs(SearchPathPlugin):
    """Appends the ``configs`` folders of installed plug-ins, for tokcomp's own applications only."""

    def manipulate_search_path(self, search_path: ConfigSearchPath) -> None:
        own, *others = config_dirs()
        if any(element.provider == "main" and element.path == str(own) for element in search_path.get_path()):
            for folder in others:
                search_path.append("tokcomp-plugin", f"file://{folder}")


def register_plugins(overrides: Sequence[str] = ()) -> None:
    """Tell Hydra of plug-ins: their ``configs`` folders, and an option for everything that has no file: registered strategies
    and benchmarks, and those that ``overrides`` choose by a dotted path (``vision=my_pkg.my_idea:MyIdea``).

    Raises:
        PluginError: a dotted path that names no strategy or benchmark.
    """
    Plugins.instance().register(_PluginConfigs)
    for stage, registry in REGISTRIES.items():
        files = option_names(stage)
        for name in registry:
            if name not in files:
                _store_option(stage, name, registry[name].model_fields)
    files = option_names("benchmark")
    for name in plugin_names():
        if name not in files:
            _store_option("benchmark", name, benchmark_class(name).model_fields)
    for group, path in _paths_in(overrides):
        cls = benchmark_class(path) if group == "benchmark" else REGISTRIES[group].at(path)
        _store_option(group, path, cls.model_fields)


def _store_option(group: str, name: str, fields: Mapping[str, FieldInfo]) -> None:
    node = {field: "???" if info.is_required() else TypeAdapter(Any).dump_python(info.get_default(call_default_factory=True),
                                                                                mode="json")
            for field, info in fields.items()}  # fmt: skip
    ConfigStore.instance().store(name=name, node={"name": name, **node}, group=group, provider="tokcomp")


def _paths_in(overrides: Sequence[str]) -> Iterator[tuple[str, str]]:
    """The dotted paths that a command line chooses, by group; ``none,my_idea:MyIdea`` holds one, too."""
    for text in overrides:
        group, equals, values = text.partition("=")
        if not equals or group not in _BY_PATH:
            continue
        for value in values.split(","):
            value = value.strip().strip("'\"")
            if _PATH.fullmatch(value):
                yield group, value


@contextmanager
def own_hydra() -> Iterator[None]:
    """A Hydra of our own: the caller's global state and compatibility version are back afterwards."""
    theirs, base = GlobalHydra.instance(), VersionBase.instance()
    application, version = theirs.hydra, base.version_base
    theirs.clear()
    try:
        with initialize_config_dir(str(config_dir()), job_name="tokcomp", version_base=VERSION_BASE):
            yield
    finally:
        GlobalHydra.set_instance(theirs)
        theirs.hydra = application
        base.version_base = version


def compose(overrides: Sequence[str] = (), *, config_name: str = "run") -> dict[str, Any]:
    """The configuration of a run, resolved, as plain data.

    Args:
        overrides: what a user writes after ``tokcomp run``.
        config_name: the root file, ``run`` or ``flops``.

    Raises:
        ConfigurationError: an override that cannot be read, an unknown group, option or setting, a missing value; one
            line that names it and the nearest known name.
    """
    overrides = current_overrides(list(overrides))
    register_plugins(overrides)
    with own_hydra():
        parsed = refuse_unreadable(overrides)
        chosen = [override.key_or_group in GROUPS[config_name] for override in parsed]
        choices = [text for text, is_choice in zip(overrides, chosen, strict=True) if is_choice]
        loader = GlobalHydra.instance().config_loader()
        refuse_unknown(parsed, root=config_name, options=loader.get_group_options)
        config = _composed(config_name, choices)
        refuse_unknown(parsed, root=config_name, options=loader.get_group_options, config=config)
        return _plain(config if len(choices) == len(overrides) else _composed(config_name, overrides))


def _composed(config_name: str, overrides: Sequence[str]) -> DictConfig:
    try:
        return hydra_compose(config_name, list(overrides))
    except (HydraException, OmegaConfBaseException, ValueError) as error:
        raise ConfigurationError(first_lines(error)) from error


def _plain(config: DictConfig) -> dict[str, Any]:
    try:
        plain = OmegaConf.to_container(config, resolve=True, throw_on_missing=True)
    except OmegaConfBaseException as error:
        key = str(error.full_key or "")
        if isinstance(error, MissingMandatoryValue):
            raise ConfigurationError(f"{key} has no default: give {key}=VALUE") from error
        raise ConfigurationError(f"{key}: {first_lines(error)}" if key else first_lines(error)) from error
    if not isinstance(plain, dict):
        return {}
    return {str(key): _with_name(value) if key in _BY_PATH else value for key, value in plain.items()}


def _with_name(section: Any) -> Any:
    """A section that says by ``_target_`` which class it means, as one that has a ``name``."""
    if not isinstance(section, dict) or "_target_" not in section:
        return section
    return {
        "name": section["_target_"],
        **{field: value for field, value in section.items() if field not in ("_target_", "name")},
    }


def first_lines(error: BaseException) -> str:
    """Hydra's message with its cause, on one line and without links."""
    texts = [str(error), *([str(error.__cause__)] if error.__cause__ else [])]
    lines = [text.strip().splitlines()[0].strip().rstrip(".") for text in texts if text.strip()]
    return ": ".join(lines)
