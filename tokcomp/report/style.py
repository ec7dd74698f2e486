"""Colours and fonts of all figures: Okabe and Ito's palette, which colour-blind readers can tell apart."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from tokcomp.errors import ConfigurationError

__all__ = ["BLUE", "GONE", "GROUPS", "INK", "KEY", "LEFT", "MUTED", "RULE", "figure", "styled"]

INK, MUTED, RULE = "#1b1f24", "#5b6570", "#d0d7de"
BLUE = "#0072B2"
LEFT = "#D55E00"
"""Vermillion: what leaves at this cut."""
GONE = "#757D87"
"""Towards this grey fade patches that left earlier; not towards black, for pictures are dark themselves."""
KEY = "#FFFFFF"
GROUPS = ("#56B4E9", "#F0E442", "#009E73", "#CC79A7", "#E69F00", "#0072B2")
"""Tints of merged groups; touching groups never share one as long as six suffice."""

_FALLBACKS = ("Noto Sans", "Noto Sans CJK SC", "Noto Sans CJK JP", "Noto Sans Arabic", "Noto Sans Devanagari")


@contextmanager
def styled() -> Iterator[None]:
    """matplotlib's settings for our figures, inside a ``with`` block; the caller's are back afterwards.

    Raises:
        ConfigurationError: matplotlib is not installed.
    """
    try:
        import matplotlib as mpl
    except ModuleNotFoundError:
        raise ConfigurationError(
            "pictures need matplotlib, which is not installed: pip install 'tokcomp[demo]'"
        ) from None
    from matplotlib.font_manager import get_font_names

    installed = set(get_font_names())
    settings = {
        "font.family": ["DejaVu Sans", *(name for name in _FALLBACKS if name in installed)],
        "font.size": 9.0,
        "text.color": INK,
        "text.parse_math": False,  # a question about $5 and $6 is no formula
        "axes.edgecolor": RULE,
        "axes.labelcolor": MUTED,
        "axes.linewidth": 0.8,
        "xtick.color": MUTED,
        "ytick.color": MUTED,
        "figure.facecolor": "white",
        "savefig.facecolor": "white",
    }
    with mpl.rc_context(settings):
        yield


def figure(width: float, height: float) -> Any:
    """An empty figure in inches that needs no display and no global state."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    canvas = FigureCanvasAgg(Figure(figsize=(width, height), dpi=150))
    return canvas.figure
