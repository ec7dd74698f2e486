"""A few shapes of SVG in the site's classes, so that a drawing follows the page from light to dark."""

from __future__ import annotations

from html import escape
from pathlib import Path


class Canvas:
    """A drawing that grows by its shapes; colours are classes of ``stylesheets/extra.css``."""

    def __init__(self, width: float, height: float, title: str) -> None:
        head = f'<svg class="diagram" viewBox="0 0 {width:g} {height:g}" role="img" xmlns="http://www.w3.org/2000/svg" '
        self.lines = [f'{head}aria-label="{escape(title)}">', f"<title>{escape(title)}</title>"]
        self._arrows = False

    def box(self, x: float, y: float, width: float, height: float, look: str = "box", rx: float = 4) -> None:
        self.lines.append(
            f'<rect class="{look}" x="{x:g}" y="{y:g}" width="{width:g}" height="{height:g}" rx="{rx:g}"/>'
        )

    def text(self, x: float, y: float, text: str, look: str = "", anchor: str = "middle") -> None:
        """Lines of a text, one below the other."""
        for number, line in enumerate(text.split("\n")):
            kind = f' class="{look}"' if look else ""
            self.lines.append(
                f'<text{kind} x="{x:g}" y="{y + 16 * number:g}" text-anchor="{anchor}">{escape(line)}</text>'
            )

    def labelled(
        self, x: float, y: float, width: float, height: float, strong: str, small: str = "", look: str = ""
    ) -> None:
        """A box with a word and what it means."""
        self.box(x, y, width, height, f"box {look}".strip())
        self.text(x + width / 2, y + height / 2 + (5 if not small else -3), strong, "strong")
        if small:
            self.text(x + width / 2, y + height / 2 + 15, small, "small")

    def path(self, points: str, look: str = "arrow") -> None:
        self.lines.append(f'<path class="{look}" d="{points}"/>')

    def arrow(self, x: float, y: float, to_x: float, to_y: float) -> None:
        """A line with a head; horizontal or vertical."""
        self.path(f"M{x:g} {y:g}L{to_x:g} {to_y:g}")
        if y == to_y:
            back = -7 if to_x > x else 7
            self.path(f"M{to_x:g} {to_y:g}l{back} -4v8z", "head")
        else:
            back = -7 if to_y > y else 7
            self.path(f"M{to_x:g} {to_y:g}l-4 {back}h8z", "head")

    def bracket(self, x: float, to_x: float, y: float, look: str) -> None:
        self.path(f"M{x:g} {y:g}v7H{to_x:g}v-7", f"bracket {look}")

    def write(self, path: Path) -> None:
        path.write_text("\n".join([*self.lines, "</svg>", ""]), encoding="utf-8")
