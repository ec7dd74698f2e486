"""Prefill-stage strategies, one a file; importing this package registers them."""

from tokcomp.prefill import dart, fastv, mustdrop, pyramiddrop, random, schedule, sparsevlm, uniform

__all__ = ["dart", "fastv", "mustdrop", "pyramiddrop", "random", "schedule", "sparsevlm", "uniform"]
