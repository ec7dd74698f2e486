"""The table of the 27 combinations, from the committed records."""

from __future__ import annotations

from pathlib import Path

from tokcomp.report.study import pareto_front, read_study

COMMAND = (
    "tokcomp sweep vision=none,tome,mustdrop prefill=none,fastv,mustdrop cache=none,h2o,mustdrop benchmark.samples=200 "
    "measure.timing=false measure.memory=false hydra.sweep.dir=docs/results/stages"
)


def table(folder: Path) -> str:
    """One line per combination, best first; a star marks a difference from the dense model that is significant."""
    if not (folder / "store.json").is_file():
        return ""
    study = read_study(folder)
    front = set(pareto_front(study.rows, "flops"))
    lines = [
        "| vision | prefill | cache | accuracy | against dense | same answer | tokens | FLOPs | KV cache |",
        "|---|---|---|---:|---:|---:|---:|---:|---:|",
    ]
    order = sorted(range(len(study.rows)), key=lambda number: (-study.rows[number].accuracy, study.rows[number].flops))
    for number in order:
        row, difference = study.rows[number], study.differences[number]
        low, high = row.interval
        told = "" if difference is None else f"{100 * difference.mean:+.1f}{'*' if difference.significant else ''}"
        bold = "**" if number in front else ""
        cells = [
            *row.stages,
            f"{bold}{row.accuracy:.1%}{bold} [{100 * low:.1f}, {100 * high:.1f}]",
            told,
            f"{row.agreement:.0%}",
            f"{row.equivalent_tokens:.4g}",
            f"{row.flops:.0%}",
            f"{row.kv_bytes:.0%}",
        ]
        lines.append("| " + " | ".join(cells) + " |")
    questions = len(study.rows[0].questions)
    note = (
        f"{questions} questions per run, {sum(study.rows[0].headline)} of them in the accuracy; intervals: 95 %, Wilson. "
        "Bold: the Pareto front of accuracy against FLOPs. `*`: different from the dense model at the 5 % level, sign-flip "
        "test on the same questions, corrected for the number of runs (Holm). Costs are shares of the dense model's."
    )
    commands = ["```sh", COMMAND, "tokcomp report docs/results/stages --no-pictures --out docs/ablation", "```", ""]
    return "\n".join([*commands, *lines, "", note])
