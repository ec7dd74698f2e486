"""Tables of ``tokcomp flops``."""

from __future__ import annotations

from rich.table import Table

from tokcomp.experiment.prediction import Prediction
from tokcomp.report.tables import bytes_text, layer_runs

__all__ = ["cost_table", "reduction_table"]


def cost_table(prediction: Prediction) -> Table:
    """FLOPs by part, tokens and cache, dense against compressed."""
    config = prediction.config
    images = "image" if config.images == 1 else f"{config.images} images"
    stages = ", ".join(
        f"{stage} {strategy.name}"
        for stage, strategy in (("vision", config.vision), ("prefill", config.prefill), ("cache", config.cache))
        if strategy is not None
    )
    before = prediction.dense_tokens.vision_tokens[0]
    title = f"{config.model.name}, {images} of {before / config.images:g} + {config.text_tokens} text tokens: {stages or 'none'}"
    table = Table(title=title, title_justify="left")
    table.add_column("one prompt")
    for name in ("dense", "compressed", "saved"):
        table.add_column(name, justify="right")
    dense, compressed = prediction.dense.by_part(), prediction.compressed.by_part()
    for part, flops in dense.items():
        if flops or compressed[part]:
            row = (f"{flops / 1e12:.4f}", f"{compressed[part] / 1e12:.4f}", _saved(flops, compressed[part]))
            table.add_row(f"TFLOPs: {part}", *row, end_section=part == "selection")
    caches = prediction.dense_cache.total, prediction.compressed_cache.total
    table.add_row(f"KV cache ({config.dtype})", bytes_text(caches[0]), bytes_text(caches[1]), _saved(*caches))
    _add_times(table, prediction)
    _add_tokens(table, prediction)
    return table


def _add_times(table: Table, prediction: Prediction) -> None:
    before, after, config = prediction.dense_time, prediction.compressed_time, prediction.config
    if before is None or after is None:
        return
    times = [("prefill", before.prefill, after.prefill)]
    if before.decode is not None and after.decode is not None:
        times.append(("each further token", before.decode, after.decode))
    for name, dense, compressed in times:
        label = f"least time, {name} ({config.device_spec}, batch {config.batch})"
        table.add_row(label, f"{1e3 * dense:.3f} ms", f"{1e3 * compressed:.3f} ms", _saved(dense, compressed))


def _saved(dense: float, compressed: float) -> str:
    return f"{1 - compressed / dense:.1%}" if dense else "-"


def _add_tokens(table: Table, prediction: Prediction) -> None:
    a, b = prediction.dense_tokens, prediction.compressed_tokens
    table.add_row(
        "vision tokens before the LM",
        f"{a.after_vision:g}",
        f"{b.after_vision:.4g}",
        _saved(a.after_vision, b.after_vision),
    )
    rows = (("entering, mean of layers", "equivalent_tokens"), ("leaving, mean of layers", "published_tokens"))
    for name, field in rows:
        counts = getattr(a, field), getattr(b, field)
        table.add_row(f"vision tokens {name}", f"{counts[0]:g}", f"{counts[1]:.4g}", _saved(*counts))
    table.add_row("vision tokens by layer", layer_runs(a.vision_tokens), layer_runs(b.vision_tokens), "")


def reduction_table(prediction: Prediction) -> Table:
    """The share of FLOPs saved by each published way of counting."""
    table = Table(title="FLOPs saved, by way of counting", title_justify="left")
    table.add_column("convention")
    table.add_column("what is counted", overflow="fold")
    table.add_column("saved", justify="right")
    for reduction in prediction.reductions:
        table.add_row(reduction.convention, reduction.meaning, f"{reduction.saved:.1%}")
    return table
