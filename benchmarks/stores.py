"""What the records of a store say, for comparing stores."""

from __future__ import annotations

from pathlib import Path

from tokcomp.experiment.result import Result
from tokcomp.experiment.store import Store

__all__ = ["table"]


def table(folder: Path) -> dict[str, tuple[float, float, float, tuple[str, ...]]]:
    """Accuracy, FLOPs, cache and answers by key.

    Raises:
        ConfigurationError: a record that cannot be read.
    """
    shown = {}
    for path in Store.existing(folder).records():
        result = Result.read(path)
        if result.compressed is not None:
            side, answers = result.compressed, tuple(sample.compressed for sample in result.samples)
            shown[path.parent.name] = (side.accuracy.overall, side.flops["total"], side.kv_bytes, answers)
    return shown
