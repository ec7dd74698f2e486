"""The runs of a study as tables for other programs: CSV, Parquet, LaTeX."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tokcomp.errors import ConfigurationError
from tokcomp.report.rows import axes_of
from tokcomp.report.study import Study

__all__ = ["flat_rows", "write_csv", "write_latex", "write_parquet"]

_FIELDS = (
    "accuracy", "dense_accuracy", "agreement", "equivalent_tokens", "image_tokens", "flops", "kv_bytes", "peak_memory",
    "prefill_time", "decode_time", "total_time",
)  # fmt: skip


def flat_rows(study: Study) -> list[dict[str, Any]]:
    """One flat mapping per run: what was chosen, every figure, the comparison, accuracy by kind, the command."""
    kinds = sorted({kind for row in study.rows for kind in row.by_kind})
    axes = {key: values for key, values in axes_of(study.rows).items() if key not in ("vision", "prefill", "cache")}
    flat = []
    for number, (row, difference) in enumerate(zip(study.rows, study.differences, strict=True)):
        vision, prefill, cache = row.stages
        flat.append(
            {
                "key": row.key,
                "vision": vision,
                "prefill": prefill,
                "cache": cache,
                **{key: values[number] for key, values in axes.items()},
                **{name: getattr(row, name) for name in _FIELDS},
                "accuracy_low": row.interval[0],
                "accuracy_high": row.interval[1],
                "difference": None if difference is None else difference.mean,
                "difference_low": None if difference is None else difference.interval[0],
                "difference_high": None if difference is None else difference.interval[1],
                "p": None if difference is None else difference.p,
                "p_corrected": None if difference is None else difference.p_corrected,
                **{f"accuracy.{kind}": row.by_kind.get(kind) for kind in kinds},
                "command": row.command,
            }
        )
    return flat


def write_csv(rows: Sequence[dict[str, Any]], path: Path) -> None:
    """Write :func:`flat_rows` as CSV."""
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    path.write_text(text.getvalue(), encoding="utf-8")


def write_parquet(rows: Sequence[dict[str, Any]], path: Path) -> None:
    """Write :func:`flat_rows` as Parquet.

    Raises:
        ConfigurationError: pyarrow is not installed.
    """
    try:
        import pyarrow
        import pyarrow.parquet
    except ModuleNotFoundError as error:
        raise ConfigurationError(
            "Parquet needs pyarrow, which is not installed: pip install 'tokcomp[report]'"
        ) from error
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(list(rows)), path)


def write_latex(study: Study, path: Path) -> None:
    """Write a table for a paper (package ``booktabs``): what tells the runs apart, accuracy with its interval, the
    difference with a star where it is significant, and the costs."""
    axes = axes_of(study.rows)
    against = "dense" if study.baseline is None else "baseline"
    heads = [*axes, "accuracy (\\%)", f"vs.\\ {against}", "tokens", "FLOPs (\\%)", "KV (\\%)"]
    lines = [
        "% written by `tokcomp report`; intervals: 95 % (Wilson); * significant at 5 %, sign flips, Holm-corrected",
        f"\\begin{{tabular}}{{{'l' * len(axes)}rrrrr}}",
        "\\toprule",
        " & ".join(_tex(head) if head in axes else head for head in heads) + " \\\\",
        "\\midrule",
    ]
    for number, (row, difference) in enumerate(zip(study.rows, study.differences, strict=True)):
        star = "" if difference is None else f"{100 * difference.mean:+.1f}" + ("*" if difference.significant else "")
        cells = [
            *(_tex(values[number] or "--") for values in axes.values()),
            f"{100 * row.accuracy:.1f} [{100 * row.interval[0]:.1f}, {100 * row.interval[1]:.1f}]",
            star or "--",
            f"{row.equivalent_tokens:.4g}",
            f"{100 * row.flops:.0f}",
            f"{100 * row.kv_bytes:.0f}",
        ]
        lines.append(" & ".join(cells) + " \\\\")
    path.write_text("\n".join([*lines, "\\bottomrule", "\\end{tabular}", ""]), encoding="utf-8")


def _tex(text: str) -> str:
    return text.translate(_TEX)


_TEX = str.maketrans(
    {**{sign: f"\\{sign}" for sign in "_%&#${}"}, "\\": "\\textbackslash{}", "~": "\\textasciitilde{}",
     "^": "\\textasciicircum{}", "<": "\\textless{}", ">": "\\textgreater{}", "|": "\\textbar{}"}
)  # fmt: skip
