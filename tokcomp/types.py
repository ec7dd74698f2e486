"""Values that cross the borders between strategies and the runner.

Notation used throughout the package: b batch, n vision tokens, l sequence length, k kept tokens, h query heads,
g key/value heads, d width, t query rows. Index tensors use -1 for "no token" (padding of a ragged batch).
"""

from __future__ import annotations

from tokcomp.cache_view import CacheView
from tokcomp.selection import Selection
from tokcomp.signals import Signal, Site, UndeclaredSignalError, debug_checks, debugging
from tokcomp.views import PrefillView
from tokcomp.vision_view import VisionView

__all__ = [
    "CacheView",
    "PrefillView",
    "Selection",
    "Signal",
    "Site",
    "UndeclaredSignalError",
    "VisionView",
    "debug_checks",
    "debugging",
]
