"""One line per run, read from its record: what tables, figures and pages of many runs are made of."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic_core import from_json

from tokcomp.benchmarks.base import benchmark_class
from tokcomp.errors import ConfigurationError
from tokcomp.experiment.result import SCHEMA_VERSION

__all__ = ["Row", "axes_of", "read_row", "row_of"]

STAGES = ("vision", "prefill", "cache")


@dataclass(frozen=True, kw_only=True)
class Row:
    """One run that ended well.

    Attributes:
        key: names the run in its store.
        overrides: the command line that composed it.
        config: the resolved configuration. ``stages``: names of its three strategies.
        accuracy, interval, by_kind: of the compressed side; ``dense_accuracy`` of the model alone.
        agreement: share of answers equal to the dense ones.
        equivalent_tokens: vision tokens, mean over the layers; ``image_tokens`` before compression.
        flops, kv_bytes, peak_memory: as shares of the dense side's (None: not measured).
        prefill_time, decode_time, total_time: likewise.
        questions, kinds, headline: of the questions, in order: what tells a question from others (id, text, expected
            answer), its kind, whether it counts in the accuracy.
        scores, dense_scores: of every question.
        settled: how the pipeline was brought to a budget, as the record tells it; None where it had none.
        started: when the run began.
    """

    key: str
    overrides: tuple[str, ...]
    config: dict[str, Any]
    stages: tuple[str, str, str]
    accuracy: float
    interval: tuple[float, float]
    by_kind: dict[str, float]
    dense_accuracy: float
    agreement: float
    equivalent_tokens: float
    image_tokens: float
    flops: float
    kv_bytes: float
    peak_memory: float | None
    prefill_time: float | None
    decode_time: float | None
    total_time: float | None
    questions: tuple[str, ...]
    kinds: tuple[str, ...]
    headline: tuple[bool, ...]
    scores: NDArray[np.float32]
    dense_scores: NDArray[np.float32]
    settled: dict[str, Any] | None
    started: str

    @property
    def command(self) -> str:
        """What makes the run again."""
        return shlex.join(["tokcomp", "run", *self.overrides])

    @property
    def settings(self) -> str:
        """Names the configuration. Callbacks decide no result, so they do not count."""
        return repr(sorted((name, section) for name, section in self.config.items() if name != "callbacks"))


def read_row(path: Path, same: dict[Any, Any] | None = None) -> Row | None:
    """The line of one record; None for a run that failed.

    Args:
        path: the record.
        same: what earlier rows hold already; equal questions and settings are shared with them.

    Raises:
        ConfigurationError: the record is damaged, or a newer tokcomp wrote it.
    """
    try:
        record = from_json(path.read_bytes())
        version = record["schema_version"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ConfigurationError(f"{path} is damaged ({type(error).__name__}): sweep again to make it anew") from error
    if version > SCHEMA_VERSION:
        raise ConfigurationError(
            f"{path} was written by a newer tokcomp (schema {version}, this one reads {SCHEMA_VERSION}): upgrade tokcomp"
        )
    return row_of(record, path.parent.name, same) if record["status"] == "ok" else None


def row_of(record: dict[str, Any], key: str, same: dict[Any, Any] | None = None) -> Row:
    """The line of a record's plain data; ``same`` as in :func:`read_row`."""
    same = {} if same is None else same

    def share(value: Any, name: Any = None) -> Any:
        return same.setdefault(name or value, value)

    dense, compressed, samples = record["dense"], record["compressed"], record["samples"]
    ratio = (compressed.get("time") or {}).get("ratio") or {}
    memory, whole = compressed.get("peak_memory"), dense.get("peak_memory")
    low, high = compressed["accuracy"]["interval"]
    kinds = share(tuple([sample["kind"] for sample in samples]))
    config = {key: share(section, repr(section)) for key, section in record["config"].items()}
    rule = ("headline", repr(config["benchmark"]), kinds)
    headline = same[rule] if rule in same else same.setdefault(rule, _headline(config["benchmark"], kinds))
    return Row(
        key=key,
        overrides=tuple(record.get("overrides", ())),
        config=config,
        stages=share((config["vision"]["name"], config["prefill"]["name"], config["cache"]["name"])),
        accuracy=compressed["accuracy"]["overall"],
        interval=(low, high),
        by_kind=compressed["accuracy"]["by_kind"],
        dense_accuracy=dense["accuracy"]["overall"],
        agreement=compressed["agreement"],
        equivalent_tokens=compressed["tokens"]["equivalent_tokens"],
        image_tokens=compressed["tokens"]["image_tokens"],
        flops=compressed["flops"]["total"] / dense["flops"]["total"],
        kv_bytes=compressed["kv_bytes"] / dense["kv_bytes"],
        peak_memory=memory / whole if memory and whole else None,
        prefill_time=ratio.get("prefill"),
        decode_time=ratio.get("decode_per_token"),
        total_time=ratio.get("end_to_end"),
        questions=share(tuple([f"{each['id']}\n{each['question']}\n{each['expected']}" for each in samples])),
        kinds=kinds,
        headline=headline,
        scores=np.array([sample["compressed_score"] for sample in samples], dtype=np.float32),
        dense_scores=np.array([sample["dense_score"] for sample in samples], dtype=np.float32),
        settled=record.get("budget"),
        started=record["started"],
    )


def _headline(benchmark: dict[str, Any], kinds: tuple[str, ...]) -> tuple[bool, ...]:
    """Which questions count in the accuracy, by the rule of the benchmark with its settings; all of them where it names none."""
    settings = {name: value for name, value in benchmark.items() if name != "name"}
    rule = benchmark_class(benchmark["name"]).model_construct(**settings).headline
    counted = {kind: rule(kind) for kind in set(kinds)}
    return tuple([counted[kind] for kind in kinds]) if any(counted.values()) else (True,) * len(kinds)


def axes_of(rows: Sequence[Row]) -> dict[str, list[str]]:
    """What tells runs apart: by setting or group, its value in every run, "" where a run's command line does not name it.
    Settings that are the same in all of them are left out."""
    given = [dict(text.partition("=")[::2] for text in row.overrides) for row in rows]
    keys = dict.fromkeys(key for overrides in given for key in overrides)
    values = {key: [overrides.get(key, "") for overrides in given] for key in keys}
    return {key: column for key, column in values.items() if len(set(column)) > 1}
