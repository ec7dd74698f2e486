"""Composes configurations with Hydra without leaving a trace in a Hydra application that the caller may have."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
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

from tokcomp.errors import ConfigurationError
from tokcomp.experiment.overrides import GROUPS, refuse_unknown, refuse_unreadable
from tokcomp.experiment.paths import config_dir, config_dirs, option_names
from tokcomp.registry import REGISTRIES

__all__ = ["VERSION_BASE", "compose", "own_hydra", "register_plugins"]

VERSION_BASE = "1.3"


class _PluginConfigs(SearchPathPlugin):
    """Appends the ``configs`` folders of installed plug-ins, for tokcomp's own applications only."""

    def manipulate_search_path(self, search_path: ConfigSearchPath) -> None:
        own, *others = config_dirs()
        if any(element.provider == "main" and element.path == str(own) for element in search_path.get_path()):
            for folder in others:
                search_path.append("tokcomp-plugin", f"file://{folder}")


def register_plugins() -> None:
    """Tell Hydra of plug-ins: their ``configs`` folders, and an option for every strategy that has no file."""
    Plugins.instance().register(_PluginConfigs)
    store = ConfigStore.instance()
    for stage, registry in REGISTRIES.items():
        files = option_names(stage)
        for name in registry:
            if name not in files:
                fields = registry[name].model_fields.items()
                node = {field: "???" if info.is_required() else info.get_default(call_default_factory=True)
                        for field, info in fields}  # fmt: skip
                store.store(name=name, node={"name": name, **node}, group=stage, provider="tokcomp")


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
    register_plugins()
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
        raise ConfigurationError(_first_lines(error)) from error


def _plain(config: DictConfig) -> dict[str, Any]:
    try:
        plain = OmegaConf.to_container(config, resolve=True, throw_on_missing=True)
    except OmegaConfBaseException as error:
        key = str(error.full_key or "")
        if isinstance(error, MissingMandatoryValue):
            raise ConfigurationError(f"{key} has no default: give {key}=VALUE") from error
        raise ConfigurationError(f"{key}: {_first_lines(error)}" if key else _first_lines(error)) from error
    return {str(key): value for key, value in plain.items()} if isinstance(plain, dict) else {}


def _first_lines(error: BaseException) -> str:
    """Hydra's message with its cause, on one line and without links."""
    texts = [str(error), *([str(error.__cause__)] if error.__cause__ else [])]
    lines = [text.strip().splitlines()[0].strip().rstrip(".") for text in texts if text.strip()]
    return ": ".join(lines)
