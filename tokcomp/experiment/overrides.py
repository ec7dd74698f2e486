"""Says what is wrong with an override, in one line: Hydra's own advice (``+vision.rr=3``) would mislead."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf

from tokcomp.errors import ConfigurationError, suggest
from tokcomp.experiment.messages import unknown_setting
from tokcomp.registry import REGISTRIES

__all__ = ["GROUPS", "refuse_unknown", "refuse_unreadable"]

GROUPS = {
    "run": ("model", "benchmark", "vision", "prefill", "cache", "preset", "experiment"),
    "flops": ("model", "vision", "prefill", "cache", "preset"),
}
"""Config groups by root file."""
_BROUGHT = {"hydra/launcher": {"joblib": "sweep", "ray": "ray", "submitit_slurm": "slurm", "submitit_local": "slurm"}}
"""Options that come with an extra of tokcomp, by group."""


def refuse_unreadable(overrides: Sequence[str]) -> list[Override]:
    """The parsed overrides.

    Raises:
        ConfigurationError: one of them is not ``name=value``, or gives several values.
    """
    parser = OverridesParser.create()
    parsed = []
    for text in overrides:
        try:
            override = parser.parse_override(text)
        except HydraException:
            raise ConfigurationError(
                f"'{text}' cannot be read: give name=value, such as vision=tome or vision.r=8; quote values with special "
                "characters twice: \"model.path='/data/a=b'\""
            ) from None
        if override.is_sweep_override():
            raise ConfigurationError(
                f"'{text}' gives several values, and a run takes one; write a list as {override.key_or_group}=[1,2]"
            )
        parsed.append(override)
    return parsed


def refuse_unknown(
    parsed: Sequence[Override],
    *,
    root: str,
    options: Callable[[str], list[str]],
    config: DictConfig | None = None,
) -> None:
    """Check group choices (without ``config``), or the settings inside the chosen options (with it).

    Args:
        parsed: the overrides.
        root: the root file.
        options: the options of a group.
        config: the configuration that the group choices give.

    Raises:
        ConfigurationError: an unknown option, group or setting; names the nearest known one.
    """
    for override in parsed:
        key = override.key_or_group
        # Hydra's settings (hydra.*), additions (+) and removals (~) are its own to judge.
        if override.is_add() or override.is_delete() or key.startswith("hydra."):
            continue
        if key.startswith("hydra/"):
            known = tuple(options(key))
            if config is None and known and isinstance(override.value(), str):
                _refuse_option(key, override.value(), known)
        elif config is None and key in GROUPS[root]:
            _refuse_option(key, override.value(), tuple(options(key)))
        elif config is not None and key not in GROUPS[root]:
            _refuse_setting(key, OmegaConf.to_container(config, resolve=False), root)


def _refuse_option(group: str, choice: object, known: tuple[str, ...]) -> None:
    if choice is None or isinstance(choice, list | dict):
        hint = f"{group}=none" if choice is None and "none" in known else f"one of: {', '.join(known)}"
        raise ConfigurationError(f"{group} takes the name of one option; give {hint}")
    name = str(choice)
    if name in known:
        return
    if name in _BROUGHT.get(group, {}):
        raise ConfigurationError(f"{group}={name} is not installed: pip install 'tokcomp[{_BROUGHT[group][name]}]'")
    kind = f"{group} strategy" if group in REGISTRIES else group
    raise ConfigurationError(f"unknown {kind} '{name}'{suggest(name, known)} known: {', '.join(known)}")


def _refuse_setting(key: str, config: object, root: str) -> None:
    """Walk down the dotted key and stop at the first name that is not there."""
    node, path = config, list[str]()
    for name in key.split("."):
        if not isinstance(node, Mapping):
            return
        if name not in node:
            groups = () if path else GROUPS[root]
            section = _section(path, config) or f"`tokcomp {root}`"
            raise ConfigurationError(unknown_setting(name, section, (*map(str, node), *groups)))
        node = node[name]
        path.append(name)


def _section(path: Sequence[str], config: object) -> str:
    if not path:
        return ""
    top = config.get(path[0]) if isinstance(config, Mapping) else None
    if isinstance(top, Mapping) and len(path) == 1 and (name := top.get("_target_", top.get("name"))) is not None:
        return f"{path[0]} '{name}'"
    return ".".join(path)
