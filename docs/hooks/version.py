"""mkdocs hook: the version of tokcomp stands beside its name on every page, in its title and in its footer."""

from __future__ import annotations

from mkdocs.config.defaults import MkDocsConfig

from tokcomp import __version__


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    config.site_name = f"{config.site_name} {__version__}"
    config.copyright = f"These pages are of tokcomp {__version__}, Apache License 2.0."
    return config
