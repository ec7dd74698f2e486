"""The tables of a run and of a prediction."""

from __future__ import annotations

import io

import pytest
from rich.console import Console
from rich.table import Table

from tokcomp.experiment.prediction import PredictionConfig, predict
from tokcomp.experiment.result import Accuracy, CompressedSide, Ratio, Result, Side, Time, Tokens
from tokcomp.report.prediction import cost_table, reduction_table
from tokcomp.report.tables import accuracy_table, bytes_text, flops_text, layer_runs, run_table


def text(table: Table) -> str:
    console = Console(file=io.StringIO(), width=160)
    console.print(table)
    shown: str = console.file.getvalue()  # type: ignore[attr-defined]
    return shown


def side(tokens: float, accuracy: float, scale: float) -> dict[str, object]:
    return {
        "accuracy": Accuracy(overall=accuracy, interval=(accuracy - 0.1, accuracy), samples=20, headline_samples=18,
                             by_kind={"count": accuracy}, interval_by_kind={"count": (0, 1)}, samples_by_kind={"count": 20}),
        "tokens": Tokens(image_tokens=144, after_vision=tokens, vision_tokens=[tokens, tokens, tokens / 2],
                         sequence_tokens=[tokens] * 3, equivalent_tokens=tokens, cache_lengths=[9, 9, 9], new_tokens=2),
        "flops": {"tower": 4e9 * scale, "decode": 0.0, "total": 4e9 * scale},
        "kv_bytes": 2e6 * scale,
        "kv_bytes_by_layer": [2e6 * scale],
        "time": Time(prefill=2 * scale, decode_per_token=None, end_to_end=2 * scale, batch_size=20, repeats=5,
                     ratio=Ratio(prefill=scale, decode_per_token=None, end_to_end=scale)),
    }  # fmt: skip


def result(**given: object) -> Result:
    config = {stage: {"name": "none"} for stage in ("vision", "prefill", "cache")}
    config |= {"model": {"name": "tiny"}, "benchmark": {"name": "scenes"}, "vision": {"name": "tome"}}
    return Result(config=config, config_hash="ab", environment={}, started="now", seconds=1, **given)  # type: ignore[arg-type]


def test_the_table_of_a_run_sets_both_sides_against_each_other() -> None:
    shown = text(
        run_table(
            result(
                status="ok",
                dense=Side(**side(144, 0.9, 1.0)),  # type: ignore[arg-type]
                compressed=CompressedSide(**side(72, 0.45, 0.25), agreement=0.5),  # type: ignore[arg-type]
            )
        )
    )
    assert "tiny on scenes: vision tome, prefill none, cache none" in shown
    assert "90.0% [80.0%, 90.0%]" in shown
    assert "144 x2 | 72" in shown
    rows = {line.split("│")[1].strip(): [cell.strip() for cell in line.split("│")[2:5]]
            for line in shown.splitlines() if line.count("│") == 5}  # fmt: skip
    assert rows["accuracy"][2] == "50.0%"
    assert rows["same answer as dense"] == ["", "50.0%", ""]
    assert rows["FLOPs: total"] == ["4.00 GFLOPs", "1.00 GFLOPs", "25.0%"]
    assert "FLOPs: decode" not in rows, "a part without work is left out"
    assert rows["KV cache after the prefill"] == ["2.00 MB", "500 kB", "25.0%"]
    assert rows["time: prefill"] == ["2.00 s", "500.0 ms", "25.0%"]
    assert rows["time: decoding, per token"] == ["-", "-", "-"]


def test_accuracy_by_kind() -> None:
    sides = {"dense": Side(**side(144, 0.9, 1.0)), "compressed": CompressedSide(**side(72, 0.5, 1.0), agreement=1)}  # type: ignore[arg-type]
    assert "│ count │        20 │ 90.0% │      50.0% │" in text(accuracy_table(result(status="ok", **sides)))


@pytest.mark.parametrize("table", [run_table, accuracy_table])
def test_a_failed_run_has_no_table(table: object) -> None:
    with pytest.raises(ValueError, match="this run failed: it has no sides"):
        table(result(status="failed", error="x"))  # type: ignore[operator]


def test_numbers_are_readable() -> None:
    assert [flops_text(1e12), flops_text(999), bytes_text(1_043_000), bytes_text(0)] == [
        "1.00 TFLOPs", "999 FLOPs", "1.04 MB", "0 B"
    ]  # fmt: skip
    assert [bytes_text(999.6e6), bytes_text(999.4e6), bytes_text(999.7)] == ["1.00 GB", "999 MB", "1.00 kB"]
    assert layer_runs([144, 144, 72.25, 3]) == "144 x2 | 72.25 | 3"


def test_the_dense_cost_of_llava_is_the_published_one() -> None:
    prediction = predict(PredictionConfig())
    shown = text(cost_table(prediction))
    for part, tera in {
        "tower": "0.3819",
        "projector": "0.0242",
        "prefill": "8.5040",
        "head": "0.1681",
        "total": "9.0782",
    }.items():
        assert any(f"TFLOPs: {part} " in line and tera in line for line in shown.splitlines())
    assert prediction.reductions == ()


def test_a_prediction_says_what_it_saves_and_what_it_assumes() -> None:
    prediction = predict(PredictionConfig(vision="mustdrop", prefill={"name": "mustdrop", "global_threshold": 0.011,
                                                                      "individual_threshold": 0.01}))  # fmt: skip
    assert any("64 tokens assumed" in line for line in prediction.assumptions)
    assert prediction.compressed_tokens.published_tokens == pytest.approx(64)
    assert prediction.compressed.total < 0.4 * prediction.dense.total
    shown = text(reduction_table(prediction))
    assert all(f"│ {name} " in shown for name in ("fastv", "prefill", "first-token"))


def test_a_prediction_without_assumption_needs_none() -> None:
    prediction = predict(PredictionConfig(prefill="fastv", cache="h2o", new_tokens=2, logits="last"))
    assert prediction.assumptions == ()
    on_cpu = predict(PredictionConfig(prefill="fastv", cache="h2o", new_tokens=2, logits="last", device="cpu"))
    assert 0 < on_cpu.compressed.selection < 0.01 * prediction.compressed.selection
    assert prediction.compressed_tokens.vision_tokens == (576,) * 2 + (288,) * 30
    assert prediction.compressed_cache.total < 0.25 * prediction.dense_cache.total
