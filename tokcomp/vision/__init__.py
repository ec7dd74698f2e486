"""Vision-stage strategies, one a file; importing this package registers them."""

from tokcomp.vision import mustdrop, pool, random, tome, uniform

__all__ = ["mustdrop", "pool", "random", "tome", "uniform"]
