"""The speed benchmark measures what it says, keeps what it has measured, and its page is made from its records."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks.cells import Cell
from benchmarks.operations import counted
from benchmarks.overhead import measured
from benchmarks.pipelines import named_pipelines
from benchmarks.plan import Plan
from benchmarks.records import Log
from benchmarks.rounds import in_rounds
from benchmarks.selection_time import selection_clock
from benchmarks.shapes import TINY, build, prompt
from tests.docs.test_generated import load
from tokcomp import Pipeline

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def model() -> Any:
    return build(TINY, CPU, torch.float32)


def inputs(batch: int = 1) -> dict[str, torch.Tensor]:
    return prompt(TINY, batch, 16, CPU, torch.float32)


def test_sides_take_turns_and_the_warm_up_is_not_counted() -> None:
    order: list[str] = []
    sides = {name: lambda name=name: order.append(name) for name in "abc"}
    samples = in_rounds(sides, CPU, repeats=3, warmup=1)
    assert "".join(order) == "abcbcacababc"
    assert all(len(found.device) == 3 for found in samples.values())


def test_a_slower_side_has_the_ratio_of_its_time() -> None:
    samples = in_rounds({"slow": lambda: time.sleep(0.04), "fast": lambda: time.sleep(0.01)}, CPU, repeats=3, warmup=0)
    assert 2 < samples["fast"].ratio(samples["slow"]).median < 6


def test_mustdrop_acts_in_all_stages_on_random_weights(model: Any) -> None:
    pipeline = named_pipelines(model, inputs()["pixel_values"])["mustdrop (three stages)"]
    with torch.inference_mode(), pipeline.attach(model) as trace:
        model(**inputs(), use_cache=True)
    merged, first, last = (
        int(trace.last.after_vision),
        int(trace.last.vision_tokens[0]),
        int(trace.last.vision_tokens[-1]),
    )
    assert TINY.image_tokens > merged == first > last
    assert all(int(length) == last + 16 for length in trace.last.cache_lengths)


def test_selecting_is_a_part_of_the_prefill(model: Any) -> None:
    def clocked(pipeline: Pipeline) -> int:
        with torch.inference_mode(), selection_clock(pipeline, CPU) as clock:
            start = time.perf_counter()
            with pipeline.attach(model):
                model(**inputs(), use_cache=True)
            whole = time.perf_counter() - start
        assert 0 < clock.seconds < whole
        return clock.calls

    assert clocked(Pipeline(cache="h2o")) == 1  # one decision for all four layers: their sums come with the attention
    assert clocked(Pipeline(prefill="fastv")) == 2  # one layer's row, and the decision


def test_operations_do_not_count_views() -> None:
    x = torch.randn(4, 6)
    assert counted(lambda: x.view(6, 4).transpose(0, 1)[:2].unsqueeze(0)) == 0
    assert counted(lambda: (x @ x.T).relu()) == 2


def test_a_steeper_step_is_told() -> None:
    growth = load("hooks/growth.py")
    times = {"dense": (10, 20, 50), "fastv (K=2, half)": (8, 15, 30), "h2o": (12, 23, 80)}
    rows = [
        {"kind": "growth", "axis": "batch", "side": side, "batch": batch, "ms": ms, "shape": "x"}
        for side, values in times.items() for batch, ms in zip((1, 2, 4), values, strict=True)
    ]  # fmt: skip
    told = growth.steps({"rows": rows})
    assert told.startswith("Of 4 steps 1 are more")
    assert "time of h2o from 2 to 4 batch: times 3.48, dense times 2.50" in told
    assert growth.drawing({"rows": rows}).count("<circle") == 9
    assert "| 4 | 50 ms | 30 ms | 80 ms |" in growth.table({"rows": rows})


def test_the_models_share_of_a_sweep(tmp_path: Path) -> None:
    found = measured(2, tmp_path / "store", ("prefill=none,fastv",))
    assert (found["jobs"], found["questions"]) == (2, 2)
    for unit in ("seconds", "processor_seconds"):
        whole, model, start, rest = (found[of + unit] for of in ("", "model_", "start_", "overhead_per_job_"))
        assert min(model, start, rest) > 0
        assert model + start + 2 * rest == pytest.approx(whole)


def test_a_step_that_fails_or_does_not_fit_is_named(tmp_path: Path) -> None:
    log = Log(tmp_path / "x.json", CPU, "x")
    plan = Plan(log, 5)
    plan.step("broken", 1, lambda: 1 / 0)
    plan.step("long", 60, lambda: pytest.fail("it must not run"))
    plan.step("short", 1, lambda: log.add(kind="found", value=1))
    content = json.loads((tmp_path / "x.json").read_text())
    assert [row["kind"] for row in content["rows"]] == ["error", "found"]
    assert content["left_out"] == ["long"]
    assert plan.failed == 1


def test_the_page_is_made_from_records(model: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    log = Log(tmp_path / "cpu.json", CPU, "python -m benchmarks.cpu")
    cell = Cell(model, TINY, inputs(2), log)
    pipelines = {"fastv (K=2, half)": Pipeline(prefill="fastv"), "h2o": Pipeline(cache="h2o")}
    cell.prefill(pipelines, repeats=2, seconds=5)
    cell.attainable(pipelines, repeats=1, seconds=5)
    cell.selection(pipelines, repeats=1)
    cell.answers(pipelines, new_tokens=4, repeats=1, seconds=5)
    cell.decode_beside_equal_length(pipelines, new_tokens=4, repeats=1, seconds=5)
    cell.memory(pipelines)
    rows = {row["side"]: row for row in log.content["rows"] if row["kind"] == "prefill"}
    assert rows["fastv (K=2, half)"]["promised"] > 1 == rows["h2o"]["promised"]  # its sums come with the attention
    assert rows["fastv (K=2, half)"]["kv_bytes"] < cell._kv_bytes(TINY.image_tokens + 16)
    page = load("hooks/performance.py")
    monkeypatch.setattr(page, "RESULTS", tmp_path)
    made = {name: make() for name, make in page.tables().items()}
    for name in ("prefill", "answers", "decode", "memory"):
        assert all(side in made[f"speed-cpu-{name}"] for side in pipelines)
    assert f"{rows['h2o']['promised']:.2f}" in made["speed-cpu-prefill"]
    assert "nan" not in made["speed-cpu-prefill"]
    assert "make bench-gpu" in made["speed-gpu-prefill"]
    text = (Path(page.__file__).parents[1] / "performance.md").read_text()
    assert set(page.tables()) == {mark.split(" -->")[0] for mark in text.split("<!-- generated: ")[1:]}
