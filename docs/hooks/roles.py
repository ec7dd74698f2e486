"""griffe extension: docstrings write :class:`~tokcomp.Pipeline`; on the site that becomes a link where there is a page."""

from __future__ import annotations

import re
from typing import Any

import griffe

_ROLE = re.compile(r":\w+:`(~?)([\w.]+)`")


def as_link(match: re.Match[str]) -> str:
    """An optional cross-reference: text where nothing documents the name."""
    short, target = match.groups()
    name = target.rpartition(".")[2] if short else target
    return f'<autoref identifier="{target}" optional><code>{name}</code></autoref>'


class Roles(griffe.Extension):
    """Rewrites the roles of every docstring."""

    def on_object(self, *, obj: griffe.Object, **kwargs: Any) -> None:
        if obj.docstring is not None:
            obj.docstring.value = _ROLE.sub(as_link, obj.docstring.value)
