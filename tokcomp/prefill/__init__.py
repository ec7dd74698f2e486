"""Prefill-stage strategies, one a file; importing this package registers them."""

from tokcomp.prefill import fastv, mustdrop, random

__all__ = ["fastv", "mustdrop", "random"]
