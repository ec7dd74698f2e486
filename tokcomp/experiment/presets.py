"""Presets by name: which strategy each stage gets, as plain data."""

from __future__ import annotations

from tokcomp.errors import ConfigurationError, suggest
from tokcomp.experiment.paths import option_names

__all__ = ["load_preset", "preset_names"]

_STAGES = ("vision", "prefill", "cache")


def preset_names() -> tuple[str, ...]:
    """Names of all presets, those of installed plug-ins included."""
    return option_names("preset")


def load_preset(name: str) -> dict[str, dict[str, object] | None]:
    """What ``configs/preset/<name>.yaml`` selects: ``{"vision": spec, "prefill": spec, "cache": spec}``.

    A spec is ``{"name": ..., fields...}`` as the option file gives it, or None for a stage that does nothing. A Hydra
    application that the caller runs is not touched.

    Raises:
        ConfigurationError: no preset has this name.
    """
    from tokcomp.experiment.compose import compose

    if name not in preset_names():
        raise ConfigurationError(
            f"unknown preset '{name}'{suggest(str(name), preset_names())} known: {', '.join(preset_names())}"
        )
    config = compose([f"preset={name}"])
    return {stage: None if config[stage]["name"] == "none" else config[stage] for stage in _STAGES}
