"""mkdocs hook: a drawing that is wider than the page scrolls in a box of its own, which a keyboard reaches, too."""

from __future__ import annotations

import re

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import Files
from mkdocs.structure.pages import Page

_DRAWING = re.compile(r'<svg class="diagram".*?</svg>', re.DOTALL)


def on_page_content(html: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    return _DRAWING.sub(lambda match: f'<div class="diagram-box" tabindex="0">{match[0]}</div>', html)
