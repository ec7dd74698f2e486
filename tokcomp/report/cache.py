"""Draws how many entries each layer's key/value cache holds."""

from __future__ import annotations

from typing import Any

from tokcomp.report.story import Story
from tokcomp.report.style import BLUE, GROUPS, INK, MUTED, RULE

__all__ = ["draw_lengths"]


def draw_lengths(axes: Any, story: Story) -> None:
    """Entries by layer: the dense model as a line, the compressed one as bars after the prefill and marks at the end."""
    from matplotlib.ticker import MaxNLocator

    cache = story.cache
    layers = range(len(cache.prefill))
    axes.bar(layers, cache.prefill, width=0.72, color=BLUE, label="compressed, after the prefill")
    axes.plot(layers, cache.end, linestyle="none", marker="D", markersize=4.2, color=GROUPS[4], markeredgecolor=INK,
              markeredgewidth=0.6, label=f"compressed, {story.new_tokens[1]} tokens later")  # fmt: skip
    axes.axhline(cache.dense[0], color=MUTED, linewidth=1.2, linestyle=(0, (4, 2)), label="dense, after the prefill")
    axes.set_xlim(-0.7, len(cache.prefill) - 0.3)
    highest = max(cache.dense[0], *cache.prefill, *cache.end)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=9))
    ticks = [tick for tick in MaxNLocator(integer=True, nbins=5).tick_values(0, highest) if tick <= highest]
    axes.set(ylim=(0, 1.4 * highest), yticks=ticks)  # the legend stands above the highest value
    axes.tick_params(labelsize=7.5, length=2.5)
    axes.set_xlabel("layer of the language model", fontsize=8.0, labelpad=2)
    axes.grid(axis="y", color=RULE, linewidth=0.6)
    axes.set_axisbelow(True)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    axes.legend(loc="upper left", fontsize=7.2, frameon=False, borderaxespad=0.2, labelspacing=0.3, handlelength=1.6)
