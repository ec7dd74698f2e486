"""Cache policies, one a file; importing this package registers them."""

from tokcomp.cache import h2o, mustdrop, random, streaming_llm

__all__ = ["h2o", "mustdrop", "random", "streaming_llm"]
