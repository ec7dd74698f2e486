"""Where configuration files lie: tokcomp's own, those of installed plug-ins, and those of the working folder."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

from tokcomp.errors import ConfigurationError
from tokcomp.plugins import GROUPS, points

__all__ = ["config_dir", "config_dirs", "option_file", "option_names"]


def config_dir() -> Path:
    """The folder of tokcomp's own configuration: inside the package in a wheel, beside it in a checkout.

    Raises:
        ConfigurationError: it is in neither place.
    """
    package = Path(__file__).resolve().parent.parent
    for folder in (package / "configs", package.parent / "configs"):
        if (folder / "run.yaml").is_file():
            return folder
    raise ConfigurationError(f"tokcomp's configuration files were not found in or beside {package}: install it again")


def config_dirs() -> tuple[Path, ...]:
    """tokcomp's folder, then the ``configs`` folder of every installed package that adds strategies, models or benchmarks and
    has one, then ``configs`` in the working folder, where ``tokcomp new`` and ``tokcomp calibrate`` write."""
    found = [config_dir()]
    for group in GROUPS:
        for point in points(group):
            # The top-level package is looked up without importing the plug-in, which may be broken.
            spec = find_spec(point.module.partition(".")[0])
            for location in (spec.submodule_search_locations if spec else None) or ():
                _join(found, Path(location) / "configs")
    _join(found, Path.cwd() / "configs")
    return tuple(found)


def _join(found: list[Path], folder: Path) -> None:
    folder = folder.resolve()
    if folder.is_dir() and folder not in found:
        found.append(folder)


def option_names(group: str) -> tuple[str, ...]:
    """Options of one config group (``preset``, ``vision``...) that have a file, sorted."""
    return tuple(sorted({path.stem for folder in config_dirs() for path in (folder / group).glob("*.yaml")}))


def option_file(group: str, name: str) -> Path:
    """The file of one option; tokcomp's own comes first.

    Raises:
        ConfigurationError: there is none.
    """
    for folder in config_dirs():
        if (folder / group / f"{name}.yaml").is_file():
            return folder / group / f"{name}.yaml"
    raise ConfigurationError(f"no option {group}={name} has a file")
