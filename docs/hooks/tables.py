"""Markdown tables of the committed results, for the site and for the README."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tokcomp.embedded import WEIGHTS
from tokcomp.embedded.questions import BACKGROUND_KINDS
from tokcomp.experiment.result import CompressedSide, Result, Side


@dataclass(frozen=True)
class Entry:
    """One committed run.

    Attributes:
        name: of its file.
        table: which table it belongs to: ``presets`` or ``budgets``.
        choice: what stood after ``tokcomp run`` besides the settings that all runs share.
        command: the whole command.
        result: its record, without the list of answers.
    """

    name: str
    table: str
    choice: str
    command: str
    result: Result

    @property
    def sides(self) -> tuple[Side, CompressedSide]:
        assert self.result.dense is not None
        assert self.result.compressed is not None
        return self.result.dense, self.result.compressed


def write(folder: Path, entry: Entry) -> None:
    """Commit a run to ``folder``: its answers one by one, its single timings and the kernel's name are left out."""
    environment = {key: value for key, value in entry.result.environment.items() if key != "platform"}
    short = entry.result.model_copy(update={"samples": [], "timing": None, "environment": environment})
    content: dict[str, Any] = {"table": entry.table, "choice": entry.choice, "command": entry.command}
    content["result"] = json.loads(short.model_dump_json())
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{entry.name}.json").write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


def read(folder: Path) -> list[Entry]:
    """The runs of a folder, in the order of their names; those that failed are no results."""
    entries = []
    for path in sorted(folder.glob("*.json")):
        content = json.loads(path.read_text(encoding="utf-8"))
        result = Result.model_validate(content.pop("result"))
        if result.status == "ok":
            entries.append(Entry(name=path.stem, result=result, **content))
    return entries


def comparison(entries: list[Entry]) -> str:
    """Accuracy against cost, one row per pipeline."""
    chosen = [entry for entry in entries if entry.table == "presets"]
    if not chosen:
        return ""
    lines = ["| `tokcomp run …` | accuracy | same answer | vision tokens | FLOPs | KV cache | prefill time |",
             "|---|---:|---:|---:|---:|---:|---:|"]  # fmt: skip
    dense = chosen[0].sides[0]
    lines.append(f"| dense | {_accuracy(dense)} | | {dense.tokens.equivalent_tokens:g} | 100 % | 100 % | 100 % |")
    for entry in chosen:
        before, after = entry.sides
        time = "" if after.time is None else f"{100 * after.time.ratio.prefill:.0f} %"
        lines.append(
            f"| `{entry.choice}` | {_accuracy(after)} | {100 * after.agreement:.0f} % "
            f"| {after.tokens.equivalent_tokens:.3g} | {_share(after.flops['total'], before.flops['total'])} "
            f"| {_share(after.kv_bytes, before.kv_bytes)} | {time} |"
        )
    return "\n".join([*lines, "", _made_on(chosen)])


def _made_on(entries: list[Entry]) -> str:
    """How many questions, and what kind of machine: times mean nothing without it."""
    accuracy, environment = entries[0].sides[0].accuracy, entries[0].result.environment
    machine = (
        environment["device_name"] or f"{environment['cpu']}, {environment['threads']} of {environment['cores']} cores"
    )
    return (
        f"{accuracy.samples} questions per run, {accuracy.headline_samples} of them in the accuracy; "
        f"PyTorch {environment['packages']['torch']} on {machine}."
    )


def kinds() -> str:
    """The dense model's accuracy by kind of question, from the record that lies beside its weights."""
    scores = json.loads((WEIGHTS / "scores.json").read_text(encoding="utf-8"))
    lines = ["| kind of question | questions | dense accuracy |", "|---|---:|---:|"]
    for kind, entry in scores["kinds"].items():
        lines.append(f"| {kind.replace('_', ' ')} | {entry['n']} | {100 * entry['accuracy']:.1f} % |")
    about_glyphs = sum(entry["n"] for kind, entry in scores["kinds"].items() if kind not in BACKGROUND_KINDS)
    lines.append(f"| all but the photo | {about_glyphs} | {100 * scores['without_photo']:.1f} % |")
    lines.append(f"| all | {scores['n']} | {100 * scores['overall']:.1f} % |")
    return "\n".join([*lines, "", f"Held-out scenes, `{scores['command']}`."])


def budgets(entries: list[Entry]) -> str:
    """Accuracy by the number of vision tokens that reach the language model, rows in groups of about equal numbers."""
    chosen = [entry for entry in entries if entry.table == "budgets"]
    if not chosen:
        return ""
    lines = ["| `tokcomp run …` | tokens before the LM | accuracy | same answer |", "|---|---:|---:|---:|"]
    for entry in sorted(chosen, key=lambda entry: (-entry.sides[1].tokens.after_vision, entry.name)):
        after = entry.sides[1]
        lines.append(f"| `{entry.choice}` | {after.tokens.after_vision:.3g} of {after.tokens.image_tokens:g} "
                     f"| {_accuracy(after)} | {100 * after.agreement:.0f} % |")  # fmt: skip
    return "\n".join(lines)


def inside(entries: list[Entry]) -> str:
    """Accuracy where tokens leave between two layers of the language model."""
    chosen = [entry for entry in entries if entry.table == "inside"]
    if not chosen:
        return ""
    lines = ["| `tokcomp run …` | vision tokens, mean of layers | accuracy | same answer |", "|---|---:|---:|---:|"]
    for entry in chosen:
        after = entry.sides[1]
        lines.append(
            f"| `{entry.choice}` | {after.tokens.equivalent_tokens:.3g} | {_accuracy(after)} | {100 * after.agreement:.0f} % |"
        )
    return "\n".join(lines)


def details(entries: list[Entry]) -> str:
    """Every committed run: its command, the machine it ran on and its figures by kind of question."""
    lines: list[str] = []
    for entry in entries:
        before, after = entry.sides
        lines += [f"**`{entry.choice}`**", "", "```", entry.command, "```", ""]
        lines += ["| | dense | compressed |", "|---|---:|---:|"]
        lines.append(f"| accuracy | {_accuracy(before)} | {_accuracy(after)} |")
        for kind, score in before.accuracy.by_kind.items():
            lines.append(
                f"| {kind.replace('_', ' ')} | {100 * score:.1f} % | {100 * after.accuracy.by_kind[kind]:.1f} % |"
            )
        for part, flops in before.flops.items():
            lines.append(f"| MFLOPs: {part} | {flops / 1e6:.1f} | {after.flops[part] / 1e6:.1f} |")
        lines.append(f"| KV cache, kB | {before.kv_bytes / 1e3:.0f} | {after.kv_bytes / 1e3:.0f} |")
        lines += ["", f"Seed {entry.result.config['seed']}, {before.accuracy.samples} questions, configuration "
                  f"`{entry.result.config_hash[:12]}`.", ""]  # fmt: skip
    return "\n".join(lines)


def _accuracy(side: Side) -> str:
    low, high = side.accuracy.interval
    return f"{100 * side.accuracy.overall:.1f} % [{100 * low:.1f}, {100 * high:.1f}]"


def _share(after: float, before: float) -> str:
    return f"{100 * after / before:.0f} %"
