"""Vision-stage strategies, one a file; importing this package registers them."""

from tokcomp.vision import (
    cdpruner,
    divprune,
    evit,
    fastervlm,
    hired,
    mustdrop,
    pitome,
    pool,
    prumerge,
    prumerge_plus,
    random,
    sequence,
    tome,
    uniform,
    visionzip,
    vispruner,
)

__all__ = [
    "cdpruner",
    "divprune",
    "evit",
    "fastervlm",
    "hired",
    "mustdrop",
    "pitome",
    "pool",
    "prumerge",
    "prumerge_plus",
    "random",
    "sequence",
    "tome",
    "uniform",
    "visionzip",
    "vispruner",
]
