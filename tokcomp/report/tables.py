"""Tables for the terminal: dense against compressed."""

from __future__ import annotations

from collections.abc import Sequence

from rich.table import Table

from tokcomp.experiment.result import Result, Side

__all__ = ["accuracy_table", "bytes_text", "flops_text", "layer_runs", "run_table"]

_UNITS = ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k"))


def _scaled(value: float, unit: str) -> str:
    for factor, letter in _UNITS:
        if abs(value) >= 0.9995 * factor:  # what three digits show as 1000 belongs to the next unit
            return f"{f'{value / factor:#.3g}'.rstrip('.')} {letter}{unit}"
    return f"{value:.3g} {unit}"


def flops_text(flops: float) -> str:
    """``1.23 GFLOPs``."""
    return _scaled(flops, "FLOPs")


def bytes_text(number: float) -> str:
    """``1.23 MB`` (powers of ten)."""
    return _scaled(number, "B")


def _seconds(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f} s" if value >= 1 else f"{1000 * value:.1f} ms"


def _share(value: float | None, of: float | None) -> str:
    return "-" if value is None or not of else f"{value / of:.1%}"


def layer_runs(counts: Sequence[float]) -> str:
    """``144 | 72 x6``: equal neighbours together."""
    runs: list[tuple[str, int]] = []
    for count in counts:
        text = f"{count:.4g}"
        runs = [*runs[:-1], (text, runs[-1][1] + 1)] if runs and runs[-1][0] == text else [*runs, (text, 1)]
    return " | ".join(text if times == 1 else f"{text} x{times}" for text, times in runs)


def run_table(result: Result) -> Table:
    """What a run saved and what it cost; one row per measure.

    Raises:
        ValueError: the run failed, so that there is nothing to compare.
    """
    if result.dense is None or result.compressed is None:
        raise ValueError(f"this run {result.status}: it has no sides to compare")
    dense, compressed = result.dense, result.compressed
    table = Table(title=_title(result), title_justify="left", caption_justify="left", caption=_caption(result))
    table.add_column("per sample")
    for name in ("dense", "compressed", "share"):
        table.add_column(name, justify="right")
    for row in (*_accuracy_rows(dense, compressed), *_token_rows(dense, compressed), *_cost_rows(dense, compressed)):
        table.add_row(*row)
    return table


def _title(result: Result) -> str:
    stages = ", ".join(f"{stage} {result.config[stage]['name']}" for stage in ("vision", "prefill", "cache"))
    return f"{result.config['model']['name']} on {result.config['benchmark']['name']}: {stages}"


def _caption(result: Result) -> str:
    assert result.compressed is not None
    accuracy = result.compressed.accuracy
    text = f"{accuracy.samples} questions, {accuracy.headline_samples} in the headline; interval: 95 % (Wilson)"
    time = result.compressed.time
    if time is not None:
        text += f"; times: a batch of {time.batch_size}, median of {time.repeats}, their shares the medians of pairs"
    return text


def _accuracy_rows(dense: Side, compressed: Side) -> list[tuple[str, str, str, str]]:
    def shown(side: Side) -> str:
        low, high = side.accuracy.interval
        return f"{side.accuracy.overall:.1%} [{low:.1%}, {high:.1%}]"

    rows = [("accuracy", shown(dense), shown(compressed), _share(compressed.accuracy.overall, dense.accuracy.overall))]
    agreement = getattr(compressed, "agreement", None)
    return rows if agreement is None else [*rows, ("same answer as dense", "", f"{agreement:.1%}", "")]


def _token_rows(dense: Side, compressed: Side) -> list[tuple[str, str, str, str]]:
    a, b = dense.tokens, compressed.tokens
    return [
        ("vision tokens before the LM", f"{a.after_vision:.1f}", f"{b.after_vision:.1f}", _share(b.after_vision, a.after_vision)),
        ("equivalent tokens (mean of layers)", f"{a.equivalent_tokens:.1f}", f"{b.equivalent_tokens:.1f}",
         _share(b.equivalent_tokens, a.equivalent_tokens)),
        ("vision tokens by layer", layer_runs(a.vision_tokens), layer_runs(b.vision_tokens), ""),
    ]  # fmt: skip


def _cost_rows(dense: Side, compressed: Side) -> list[tuple[str, str, str, str]]:
    rows = [
        (f"FLOPs: {part}", flops_text(flops), flops_text(compressed.flops[part]), _share(compressed.flops[part], flops))
        for part, flops in dense.flops.items()
        if flops or compressed.flops[part]
    ]
    rows.append(("KV cache after the prefill", bytes_text(dense.kv_bytes), bytes_text(compressed.kv_bytes),
                 _share(compressed.kv_bytes, dense.kv_bytes)))  # fmt: skip
    a, b = dense.time, compressed.time
    if a is not None and b is not None:
        for name, field in (
            ("prefill", "prefill"),
            ("decoding, per token", "decode_per_token"),
            ("end to end", "end_to_end"),
        ):
            ratio = getattr(b.ratio, field)
            rows.append((f"time: {name}", _seconds(getattr(a, field)), _seconds(getattr(b, field)),
                         "-" if ratio is None else f"{ratio:.1%}"))  # fmt: skip
    if dense.peak_memory is not None and compressed.peak_memory is not None:
        rows.append(("peak memory of a batch", bytes_text(dense.peak_memory), bytes_text(compressed.peak_memory),
                     _share(compressed.peak_memory, dense.peak_memory)))  # fmt: skip
    return rows


def accuracy_table(result: Result) -> Table:
    """Accuracy by kind of question, dense against compressed.

    Raises:
        ValueError: the run failed.
    """
    if result.dense is None or result.compressed is None:
        raise ValueError(f"this run {result.status}: it has no sides to compare")
    table = Table(title="accuracy by kind of question", title_justify="left")
    table.add_column("kind")
    for name in ("questions", "dense", "compressed"):
        table.add_column(name, justify="right")
    dense, compressed = result.dense.accuracy, result.compressed.accuracy
    for kind in sorted(dense.by_kind):
        table.add_row(
            kind, str(dense.samples_by_kind[kind]), f"{dense.by_kind[kind]:.1%}", f"{compressed.by_kind[kind]:.1%}"
        )
    return table
