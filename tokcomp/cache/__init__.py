"""Cache policies, one a file; importing this package registers them."""

from tokcomp.cache import adakv, h2o, keydiff, knorm, mustdrop, pyramidkv, random, snapkv, streaming_llm, tova

__all__ = ["adakv", "h2o", "keydiff", "knorm", "mustdrop", "pyramidkv", "random", "snapkv", "streaming_llm", "tova"]
