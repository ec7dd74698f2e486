"""Vision-stage strategies, one a file; importing this package registers them."""

from tokcomp.vision import fastervlm, mustdrop, pool, random, tome, uniform

__all__ = ["fastervlm", "mustdrop", "pool", "random", "tome", "uniform"]
