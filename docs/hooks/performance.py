"""The tables of docs/performance.md, from the records that the benchmarks wrote."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import aims
import growth
from cells import Rows, by_cell, cell_key, gigabytes, interval, of_kind, percent, table_of

from tokcomp.measure.roofline import layer_parameters
from tokcomp.measure.shape import named_shape

RESULTS = Path(__file__).parents[2] / "benchmarks" / "results"


def tables() -> dict[str, Callable[[], str]]:
    """What stands for the marks ``speed-cpu-…`` and ``speed-gpu-…`` of the page."""
    makers = {
        "machine": machine, "prefill": prefill, "published": aims.published, "selecting": aims.selecting, "answers": answers,
        "decode": decode, "memory": memory, "growth": growth.table, "growth-drawing": growth.drawing,
        "growth-steps": growth.steps, "operations": operations, "short": short, "ceilings": ceilings, "least": least,
    }  # fmt: skip
    made = {
        f"speed-{device}-{name}": lambda device=device, make=make: _made(device, make)
        for device in ("cpu", "gpu") for name, make in makers.items()
    }  # fmt: skip
    return {
        **made, "speed-sweep": lambda: _made("overhead", sweep), "speed-compiled": lambda: _made("compiled", compiled),
    }  # fmt: skip


_COMMANDS = {
    "cpu": "make bench", "gpu": "make bench-gpu", "overhead": "make bench-sweeps", "compiled": "python -m benchmarks.compiled",
}  # fmt: skip


def _made(name: str, make: Callable[[dict[str, Any]], str]) -> str:
    path = RESULTS / f"{name}.json"
    if not path.is_file():
        return f"_No such record is committed yet: `{_COMMANDS[name]}` writes it._"
    text = make(json.loads(path.read_text(encoding="utf-8")))
    return text or "_Not measured in this run._"


def machine(record: dict[str, Any]) -> str:
    """The command and what it ran on."""
    of, left_out = record["machine"], record["left_out"]
    where = f"{of['gpu']}, CUDA {of['cuda']}" if "gpu" in of else f"{of['cpu']}, {of['threads']} of {of['cores']} cores"
    text = f"`{record['command']}` on {where}; PyTorch {of['torch']}, transformers {of['transformers']}."
    failed = [row["step"] for row in of_kind(record, "error")]
    text += f" Left out for time: {', '.join(left_out)}." if left_out else ""
    return text + (f" Failed: {', '.join(failed)}." if failed else "")


def ceilings(record: dict[str, Any]) -> str:
    """The device's own rates, measured in the same run."""
    rows = of_kind(record, "ceilings")
    if not rows:
        return ""
    row = rows[0]
    dense = [cell["flops"] / cell["ms"] / 1e9 for cell in of_kind(record, "prefill") if cell["side"] == "dense"]
    lines = (f"A large matrix product runs at {row['flops_per_s'] / 1e12:.3g} TFLOP/s here and a large copy at "
             f"{row['bytes_per_s'] / 1e12:.3g} TB/s.")  # fmt: skip
    if dense:
        lines += f" The dense prefills below reach {min(dense):.3g} to {max(dense):.3g} TFLOP/s."
    return lines


def least(record: dict[str, Any]) -> str:
    """The roofline of `tokcomp flops`, at the rates measured in this run, beside the measured times."""
    rates = of_kind(record, "ceilings")
    if not rates:
        return ""
    width = 2 if "bfloat16" in rates[0]["dtype"] else 4
    body = []
    for row in of_kind(record, "prefill"):
        if row["side"] == "dense":
            bound = 1e3 * row["flops"] / rates[0]["flops_per_s"]
            body.append([f"prefill, {row['shape']}, batch {row['batch']}", f"{bound:.2f}", f"{row['ms']:.2f}",
                         percent(bound / row["ms"])])  # fmt: skip
    for row in of_kind(record, "answer"):
        if row["side"] == "dense" and row["shape"].startswith(("llava-1.5-7b", "llava-next-7b")):
            shape = named_shape("llava-1.5-7b")
            weights = width * (shape.layers * layer_parameters(shape) + shape.hidden * shape.vocab)
            bound = 1e3 * (weights + row["kv_bytes"]) / rates[0]["bytes_per_s"]
            body.append([f"further token, {row['shape']}, batch {row['batch']}", f"{bound:.2f}", f"{row['decode_ms']:.2f}",
                         percent(bound / row["decode_ms"])])  # fmt: skip
    head = ["dense model", "least, ms", "measured, ms", "least of measured"]
    return "\n".join(table_of(head, body)) if body else ""


def prefill(record: dict[str, Any]) -> str:
    """Time of the prefill beside what the FLOPs promise and what the unmodified parts attain."""
    attainable = {cell_key(row): row["ms"] for row in of_kind(record, "attainable")}
    selecting = {cell_key(row): row["share"] for row in of_kind(record, "selection")}
    lines: list[str] = []
    for title, rows in by_cell(of_kind(record, "prefill")):
        lines += [f"**{title}**", ""]
        dense = next(row for row in rows if row["side"] == "dense")
        body = [["dense", f"{dense['image_tokens']}", interval(dense), "1", "", "", "", "", "100 %"]]
        for row in rows:
            if row["side"] == "dense":
                continue
            best, share = attainable.get(cell_key(row)), selecting.get(cell_key(row))
            body.append([
                row["side"], f"{row['equivalent_tokens']:.0f}", interval(row), f"{row['ratio']:.2f}", f"{row['promised']:.2f}",
                percent(row["reached"]), "" if best is None else percent(best / row["ms"]),
                "" if share is None else percent(share, 1), percent(row["kv_bytes"] / _full(dense, rows)),
            ])  # fmt: skip
        head = ["pipeline", "vision tokens per layer", "prefill, ms", "times faster", "promised by FLOPs", "reached",
                "of the attainable", "selecting", "KV cache"]  # fmt: skip
        lines += [*table_of(head, body), ""]
    return "\n".join(lines)


def _full(dense: dict[str, Any], rows: Rows) -> float:
    """Bytes of the dense cache: those of the pipeline that does nothing, or scaled from a row that keeps all tokens."""
    for row in rows:
        if row["side"] != "dense":
            per_token = row["kv_bytes"] / sum(row["layer_lengths"])
            if row["side"] == "none":
                return row["kv_bytes"]
            if row["side"].startswith(("fastv", "fastervlm", "uniform")):
                return per_token * len(row["layer_lengths"]) * (dense["image_tokens"] + dense["text_tokens"])
    return float("nan")


def answers(record: dict[str, Any]) -> str:
    """Whole answers by ``generate()``."""
    lines: list[str] = []
    for title, rows in by_cell(of_kind(record, "answer")):
        dense = next(row for row in rows if row["side"] == "dense")
        body = [[
            row["side"], f"{row['first_token_ms']:.1f}", f"{row['decode_ms']:.2f}",
            f"{dense['decode_ms'] / row['decode_ms']:.2f}", f"{row['decode_promised']:.2f}",
            f"{row['end_to_end_ms'] / 1e3:.2f}", f"{dense['end_to_end_ms'] / row['end_to_end_ms']:.2f}",
            f"{row['kv_bytes'] / 1e6:.0f}",
        ] for row in rows]  # fmt: skip
        head = ["pipeline", "first token, ms", "further token, ms", "times faster", "promised by bytes",
                "whole answer, s", "times faster ", "KV cache, MB"]  # fmt: skip
        lines += [f"**{title}, {dense['new_tokens']} new tokens**", "", *table_of(head, body), ""]
    return "\n".join(lines)


def decode(record: dict[str, Any]) -> str:
    """What the runner costs per step."""
    lines: list[str] = []
    for title, rows in by_cell(of_kind(record, "decode")):
        body = [[row["side"], f"{row['cache_length']}", f"{row['decode_ms']:.2f}", f"{row['plain_decode_ms']:.2f}",
                 f"{row['ratio']:.2f}"] for row in rows]  # fmt: skip
        head = ["pipeline", "entries per layer", "step, ms", "plain model with as many entries, ms", "ratio"]
        lines += [f"**{title}**", "", *table_of(head, body), ""]
    return "\n".join(lines)


def sweep(record: dict[str, Any]) -> str:
    """How much of a sweep the model works."""
    told = [
        f"{row['jobs']} runs of {row['questions']} questions took {row['seconds']:.0f} s, of which the model worked "
        f"{row['model_seconds']:.0f} s, {percent(row['model_seconds'] / row['seconds'])}"
        for row in of_kind(record, "sweep")
    ]
    return f"`{record['command']}`: {'; '.join(told)}." if told else ""


def operations(record: dict[str, Any]) -> str:
    """What a prefill and a step give the device to do."""
    lines: list[str] = []
    for title, rows in by_cell(of_kind(record, "operations")):
        dense = next(row for row in rows if row["side"] == "dense")
        body = [[row["side"], f"{row['prefill']:,}", f"{row['prefill'] - dense['prefill']:+,}", f"{row['step']:,}",
                 f"{row['step'] - dense['step']:+,}"] for row in rows]  # fmt: skip
        head = ["pipeline", "operations of a prefill", "beside dense", "of a decoding step", "beside dense "]
        lines += [f"**{title}**", "", *table_of(head, body), ""]
    return "\n".join(lines)


def compiled(record: dict[str, Any]) -> str:
    """What `torch.compile` makes of the decisions."""
    times = {
        (row["part"], row["size"]): f"{row['plain_ms']:.2f} → {row['compiled_ms']:.2f}"
        for row in of_kind(record, "time")
    }
    body = [[
        row["part"], f"{row['operations']} → {row['kernels'] + row['library_calls']}", f"{row['graphs']}",
        f"{row['graphs_after_lengths']}", f"{row['graphs_after_batch']}", f"{row['first_seconds']:.0f}",
        times.get((row["part"], "usual"), ""), times.get((row["part"], "tiny"), ""), "yes" if row["same"] else "no",
    ] for row in of_kind(record, "graphs")]  # fmt: skip
    head = ["decision", "operations → kernels and library calls", "graphs", "after other lengths", "after batch 4",
            "first call, s", "24 x 24 tokens, ms", "9 x 9 tokens, ms", "same result"]  # fmt: skip
    return "\n".join([machine(record), "", *table_of(head, body)]) if body else ""


def memory(record: dict[str, Any]) -> str:
    """Peaks of a prefill."""
    lines: list[str] = []
    for title, rows in by_cell([row for row in of_kind(record, "memory") if "axis" not in row]):
        if any(row["side"].startswith("published") for row in rows):
            continue
        dense = next(row for row in rows if row["side"] == "dense")
        body = [[row["side"], gigabytes(row["increase_bytes"]), percent(row["increase_bytes"] / dense["increase_bytes"])]
                for row in rows]  # fmt: skip
        head = ["pipeline", "peak on top of the weights", "of dense"]
        lines += [f"**{title}**", "", *table_of(head, body), ""]
    return "\n".join(lines)


def short(record: dict[str, Any]) -> str:
    """The cells that stay below 90 % of what their FLOPs promise, each with what holds it back, told from the numbers."""
    attainable = {cell_key(row): row["ms"] for row in of_kind(record, "attainable")}
    gpu = "gpu" in record["machine"]
    reasons: dict[str, list[str]] = {}
    for row in of_kind(record, "prefill"):
        if row["side"] in ("dense", "none") or row["reached"] >= 0.9:
            continue
        where = f"{row['side']} ({row['shape']}, batch {row['batch']}: {percent(row['reached'])})"
        reasons.setdefault(_reason(row, attainable.get(cell_key(row)), gpu), []).append(where)
    if not of_kind(record, "prefill"):
        return ""
    if not reasons:
        return "Every cell reaches 90 % of what its FLOPs promise."
    return "\n".join(f"- {why}: {'; '.join(cells)}." for why, cells in reasons.items())


def _reason(row: dict[str, Any], best: float | None, gpu: bool) -> str:
    if gpu and row["host_ms"] > 0.93 * row["ms"]:
        return ("the host is busy for as long as the device or waits for it (Python and launches, in the model's own layers "
                "as well); fewer launches would help: CUDA graphs, or larger batches")  # fmt: skip
    if best is not None and best / row["ms"] > 0.9:
        return ("the unmodified layers themselves run below the dense model's rate at these lengths; the runner is within "
                "10 % of what they attain")  # fmt: skip
    if best is not None:
        return "the unmodified layers lose a part at these lengths, selecting and moving tokens the rest"
    return "not told apart in this run (no attainable time was measured for this cell)"
