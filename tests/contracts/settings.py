"""Every registered strategy with its defaults, and with settings in which it does something else."""

from __future__ import annotations

from typing import Any

from tokcomp.registry import REGISTRIES
from tokcomp.stages import Strategy

VISION: dict[str, list[dict[str, Any]]] = {
    "mustdrop": [
        {"window": 2, "threshold": 0.6},
        {"window": 2, "threshold": 0.6, "order": "image"},
        {"threshold": -1.0, "key_ratio": 1.0},
        {"threshold": 2.0, "key_ratio": 0},
    ],
    "tome": [{"r": 3}, {"r": 100}, {"r": [5, 0, 2, 1]}, {"r": 0.1, "inflect": -1.0, "proportional_attention": False}],
    "random": [{"keep_tokens": 5}, {"keep_ratio": 0.9, "seed": 7}],
    "uniform": [{"keep_tokens": 5}, {"keep_ratio": 0.9}],
    "pool": [{"window": 3}],
    "visionzip": [{"dominant": 1, "contextual": 0}, {"keep_tokens": 9, "order": "image"}],
    "prumerge": [{"keep_tokens": 9, "neighbours": 3}],
    "prumerge_plus": [{"keep_ratio": 0.5}],
    "vispruner": [{"keep_tokens": 10, "important_ratio": 0.0}],
    "evit": [{"layers": [1], "keep_ratio": 0.3, "order": "published"}, {"fuse": False}],
    "pitome": [{"r": 0.4}],
    "sequence": [{"steps": ["fastervlm", "vispruner", {"name": "tome", "r": 3}, {"name": "evit", "layers": [1]}]}],
}

PREFILL: dict[str, list[dict[str, Any]]] = {
    "fastv": [{"keep_tokens": 5}, {"keep_ratio": 0.13, "layer": 3}],
    "uniform": [{"keep_tokens": 5}, {"keep_ratio": 0.13, "layer": 3}],
    "dart": [
        {"rounding": "exact", "keep_tokens": 5},
        {"rounding": "exact", "keep_ratio": 0.9, "image_pivots": 2, "text_pivots": 0},
        {"keep_tokens": 12, "text_pivots": 3},
    ],
    "pyramiddrop": [{"layers": (0.5, -1), "keep_ratios": (0.4, 0.1)}],
    "sparsevlm": [
        {"scale": 1.5, "bias": 2},
        {"keep_tokens": (6, 3), "layers": (1, 0.5), "recycle": 0.9},
        {"keep_ratios": (0.5, 0.3, 0.1), "recycle": 0},
    ],
    "schedule": [
        {"steps": ["fastv", {"name": "sparsevlm", "layers": (0.75,), "keep_tokens": (3,)}], "positions": "keep"},
        {
            "steps": [{"name": "dart", "layer": 1}, {"name": "mustdrop", "layers": (0.5, 0.75)}],
            "respects_protected": True,
        },
    ],
    "random": [{"keep_tokens": 5}, {"keep_ratio": 0.13, "seed": 3}],
    "mustdrop": [
        {"global_threshold": 0.08, "individual_threshold": 0.2},
        {"global_threshold": 1.0, "individual_threshold": 1.0, "layers": (1, -1)},
    ],
}

CACHE: dict[str, list[dict[str, Any]]] = {
    "h2o": [
        {"heavy_tokens": 6, "recent_tokens": 4},
        {"heavy_ratio": 0.3, "eviction": "mask"},
        {"heavy_tokens": 0, "recent_tokens": 1, "keep_text": True},
    ],
    "streaming_llm": [{"recent_tokens": 5}, {"keep_ratio": 0.6, "sinks": 0, "positions": "keep", "keep_text": True}],
    "random": [{"keep_tokens": 9, "recent_tokens": 3}, {"keep_ratio": 0.3, "keep_text": True}],
    "mustdrop": [{"first_layer": 0, "positions": "keep"}],
    "adakv": [
        {"base": {"name": "knorm", "keep_tokens": 7}, "alpha": 0.5},
        {"base": {"name": "pyramidkv", "keep_ratio": 0.4}, "allocation": "published"},
    ],
    "vlcache": [{"keep_ratio": 0.4, "window": "different"}, {"keep_ratio": 0.3, "heads": "shared", "keep_text": True}],
    "lookm": [{"keep_tokens": 9, "merge": "average"}, {"keep_ratio": 0.5, "recent_ratio": 0.4, "merge": "none"}],
    "merging": [
        {"base": {"name": "tova", "keep_tokens": 8}, "threshold": 0.2},
        {"base": {"name": "knorm", "keep_tokens": 6}, "merge_fraction": 0.5, "keep_text": True},
    ],
    "output_aware": [{"start": 1, "every": 1, "final_tokens": 4}, {"start": 1, "mode": "threshold", "threshold": 1.0}],
    "expected_attention": [{"keep_tokens": 7, "sinks": 1, "covariance": False, "value_norm": False, "future": 3}],
    "interval": [
        {"base": {"name": "knorm", "keep_tokens": 8}, "every": 1},
        {"base": {"name": "snapkv", "keep_tokens": 6, "window": 2}, "every": 1, "prefill": True},
    ],
    "by_layer": [{"ranges": [{"policy": "h2o"}, {"first_layer": 0.5, "policy": {"name": "tova", "current": "stays"}}]}],
    "snapkv": [{"keep_tokens": 9, "window": 3, "kernel": 3, "pooling": "max"}, {"heads": "shared", "keep_text": True}],
    "pyramidkv": [{"keep_ratio": 0.4, "window": 2, "beta": 4}, {"rounding": "original"}, {"rounding": "kvpress"}],
    "tova": [{"keep_tokens": 7}, {"current": "stays", "keep_text": True}],
    "knorm": [{"keep_tokens": 5, "sinks": 0, "recent_tokens": 0}],
    "keydiff": [{"keep_ratio": 0.4, "block": 4}],
}

OTHER = {"vision": VISION, "prefill": PREFILL, "cache": CACHE}


def defaults() -> list[Strategy]:
    """Every strategy as it comes."""
    return [cls() for registry in REGISTRIES.values() for cls in registry.values()]


def variants() -> list[Strategy]:
    """Every strategy with the settings above."""
    return [REGISTRIES[stage][name](**fields) for stage, names in OTHER.items() for name, several in names.items()
            for fields in several]  # fmt: skip


def of_stage(stage: str) -> list[Any]:
    """The strategies of one stage, in all their settings."""
    return [strategy for strategy in [*defaults(), *variants()] if strategy.stage == stage]
