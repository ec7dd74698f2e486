"""Stores of made-up records: what reports are tested on without running a model."""

from __future__ import annotations

import itertools
import json
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tokcomp.experiment.result import SCHEMA_VERSION

KINDS = ("count", "describe", "photo")


def record(
    vision: str, prefill: str, cache: str, *, seed: int = 0, samples: int = 30, accuracy: float = 0.9
) -> dict[str, Any]:
    """The plain data of one run, whose accuracy falls with every strategy."""
    dice = random.Random(f"{vision}{prefill}{cache}{seed}")
    right = accuracy - 0.15 * sum(name != "none" for name in (vision, prefill, cache))
    answered = [
        {
            "id": f"q{number}", "kind": KINDS[number % len(KINDS)], "question": f"what is {number} <b>?", "expected": "yes",
            "dense": "yes", "compressed": "yes" if (good := dice.random() < right) else "no </script>", "dense_score": 1.0,
            "compressed_score": float(good), "equivalent_tokens": 72.0,
        }
        for number in range(samples)
    ]  # fmt: skip
    counted = [sample for sample in answered if sample["kind"] != "photo"]
    overall = sum(sample["compressed_score"] for sample in counted) / len(counted)
    by_kind = {
        kind: sum(s["compressed_score"] for s in answered if s["kind"] == kind) / (samples / 3) for kind in KINDS
    }
    cut = 1 - 0.2 * sum(name != "none" for name in (vision, prefill, cache))

    def side(accuracy: float, share: float) -> dict[str, Any]:
        return {
            "accuracy": {
                "overall": accuracy, "interval": [max(0.0, accuracy - 0.1), min(1.0, accuracy + 0.1)], "samples": samples,
                "headline_samples": len(counted), "by_kind": by_kind,
                "interval_by_kind": {kind: [0.0, 1.0] for kind in KINDS},
                "samples_by_kind": dict.fromkeys(KINDS, samples // 3),
            },
            "tokens": {
                "image_tokens": 144.0, "after_vision": 144 * share, "vision_tokens": [144 * share] * 8,
                "sequence_tokens": [150.0] * 8, "equivalent_tokens": 144 * share, "cache_lengths": [150.0] * 8, "new_tokens": 2.0,
            },
            "flops": {"total": 1e9 * share}, "kv_bytes": 1e6 * share, "kv_bytes_by_layer": [1e5] * 8,
        }  # fmt: skip

    return {
        "schema_version": SCHEMA_VERSION, "status": "ok", "config": {
            "model": {"name": "tiny"}, "benchmark": {"name": "scenes", "samples": samples}, "vision": {"name": vision},
            "prefill": {"name": prefill}, "cache": {"name": cache}, "seed": seed,
        },
        "config_hash": "0" * 64, "overrides": [f"vision={vision}", f"prefill={prefill}", f"cache={cache}", f"seed={seed}"],
        "environment": {}, "started": "2026-01-01T00:00:00+00:00", "seconds": 1.0, "dense": side(1.0, 1.0),
        "compressed": {**side(overall, cut), "agreement": overall}, "samples": answered,
    }  # fmt: skip


def write_store(root: Path, records: Iterator[dict[str, Any]] | list[dict[str, Any]]) -> Path:
    """A store of such records."""
    root.mkdir(parents=True, exist_ok=True)
    (root / "store.json").write_text(json.dumps({"schema_version": SCHEMA_VERSION}))
    for number, data in enumerate(records):
        folder = root / "runs" / f"{number:016x}"
        folder.mkdir(parents=True)
        (folder / "result.json").write_text(json.dumps(data))
    return root


def grid(seeds: int = 1, **more: Any) -> list[dict[str, Any]]:
    """27 combinations for every seed."""
    stages = ("none", "tome", "mustdrop"), ("none", "fastv", "mustdrop"), ("none", "h2o", "mustdrop")
    return [record(*names, seed=seed, **more) for seed in range(seeds) for names in itertools.product(*stages)]
