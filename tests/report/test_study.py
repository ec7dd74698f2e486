"""Reports of many runs: statistics against naive loops, Pareto fronts, exports, comparison, refusals."""

from __future__ import annotations

import csv
import itertools
import json
import shlex
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.report.stores import grid, record, write_store
from tokcomp.benchmarks.base import Benchmark, Sample
from tokcomp.cli.main import main
from tokcomp.errors import ConfigurationError
from tokcomp.report.compare import compare
from tokcomp.report.export import _tex, flat_rows, write_csv, write_latex, write_parquet
from tokcomp.report.page.build import _data
from tokcomp.report.pictures import draw_pictures
from tokcomp.report.statistics import RESAMPLES, holm, paired_differences
from tokcomp.report.study import pareto_front, read_study


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_store(tmp_path_factory.mktemp("store"), grid())


def test_a_sign_flip_test_agrees_with_the_exact_one() -> None:
    gain = np.array([1, 1, 1, 0, -1, 1, 1, 0, 1, 1], dtype=float)
    exact = np.mean(
        [abs(np.dot(signs, gain)) >= abs(gain.sum()) for signs in itertools.product((-1, 1), repeat=len(gain))]
    )
    (found,) = paired_differences(gain[None] * 0.5 + 0.5, np.full(10, 0.5))
    assert found.p == pytest.approx(exact, abs=0.02)
    assert found.mean == pytest.approx(gain.mean() * 0.5)
    assert found.interval[0] < found.mean < found.interval[1]


def test_runs_that_answer_alike_do_not_differ() -> None:
    scores = np.random.default_rng(0).integers(0, 2, (3, 40)).astype(float)
    for found in paired_differences(scores, scores):
        assert (found.mean, found.interval, found.p, found.p_corrected) == (0.0, (0.0, 0.0), 1.0, 1.0)


def test_many_runs_take_no_more_memory_than_a_few_at_a_time() -> None:
    scores = np.random.default_rng(0).integers(0, 2, (4000, 25)).astype(float)
    tracemalloc.start()
    found = paired_differences(scores, scores[::-1])
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len(found) == len(scores)
    assert peak < 8 * RESAMPLES * len(scores) / 2, "half of one resampled mean per run and resample"


@given(st.lists(st.floats(0, 1, allow_subnormal=False), min_size=1, max_size=12))  # a library may flush subnormals
def test_holm_is_the_step_down_rule(p: list[float]) -> None:
    corrected = holm(np.array(p))
    worst = 0.0
    for rank, number in enumerate(sorted(range(len(p)), key=lambda i: p[i])):
        worst = max(worst, min(1.0, p[number] * (len(p) - rank)))
        assert corrected[number] == pytest.approx(worst)


def test_no_run_beats_the_pareto_front(store: Path) -> None:
    rows = read_study(store).rows
    front = pareto_front(rows, "flops")
    assert front
    for number in front:
        better = [row for row in rows if row.flops <= rows[number].flops and row.accuracy > rows[number].accuracy]
        assert not better
    outside = set(range(len(rows))) - set(front)
    for number in outside:
        assert any(rows[f].flops <= rows[number].flops and rows[f].accuracy >= rows[number].accuracy for f in front)


def test_effects_and_interactions_are_those_of_a_balanced_table(store: Path) -> None:
    study = read_study(store)
    means = study.means("vision", "cache")
    effects = study.effects("vision")
    for number, name in enumerate(study.options("vision")):
        assert effects[name] == pytest.approx(means[number].mean() - means.mean())
    np.testing.assert_allclose(study.interactions("vision", "cache").sum(axis=0), 0, atol=1e-12)
    assert study.options("vision")[0] == "none"


def test_only_questions_of_the_headline_are_compared(store: Path) -> None:
    study = read_study(store)
    for row, difference in zip(study.rows, study.differences, strict=True):
        assert difference is not None
        assert difference.mean == pytest.approx(row.accuracy - row.dense_accuracy, abs=1e-6)


def test_a_baseline_is_named_by_its_settings(store: Path) -> None:
    study = read_study(store, baseline="vision=none prefill=none cache=none")
    own = study.rows.index(study.baseline)  # type: ignore[arg-type]
    assert study.differences[own].mean == 0  # type: ignore[union-attr]
    with pytest.raises(ConfigurationError, match="names 9 runs"):
        read_study(store, baseline="vision=tome")
    with pytest.raises(ConfigurationError, match="names no runs"):
        read_study(store, baseline="vision=nothing")


def test_every_run_is_in_the_exports(store: Path, tmp_path: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow.parquet")
    study = read_study(store)
    write_csv(flat_rows(study), tmp_path / "a.csv")
    write_parquet(flat_rows(study), tmp_path / "a.parquet")
    write_latex(study, tmp_path / "a.tex")
    with (tmp_path / "a.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [float(row["accuracy"]) for row in rows] == [row.accuracy for row in study.rows]
    assert pyarrow.read_table(tmp_path / "a.parquet").num_rows == 27
    text = (tmp_path / "a.tex").read_text()
    assert text.count("\\\\\n") == 28
    assert _tex("a{b}~c^\\d") == r"a\{b\}\textasciitilde{}c\textasciicircum{}\textbackslash{}d"
    assert "_" not in text.replace("\\_", "").replace("tokcomp_", "")


def test_runs_are_corrected_together_whatever_they_answered(tmp_path: Path) -> None:
    records = [record(name, "none", "none", accuracy=0.75) for name in ("tome", "pool", "random")]
    for number, data in enumerate(records):
        for sample in data["samples"]:
            sample["id"] += f" of set {number}"
    study = read_study(write_store(tmp_path, records))
    found = [difference for difference in study.differences if difference is not None]
    assert [each.p_corrected for each in found] == holm(np.array([each.p for each in found])).tolist()
    assert sum(each.p_corrected > each.p for each in found) >= 2


def test_a_baseline_of_other_questions_is_no_baseline_even_with_equal_ids(tmp_path: Path) -> None:
    a, b = record("none", "none", "none"), record("tome", "none", "none")
    b["samples"][0]["question"] = "another one ?"
    study = read_study(write_store(tmp_path, [a, b]), baseline="vision=none")
    assert [difference is None for difference in study.differences] == [False, True]


def test_an_older_record_of_a_configuration_is_left_out_and_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    late, early = record("tome", "none", "none"), record("tome", "none", "none", accuracy=0.4)
    late["started"], late["config"]["callbacks"] = "2026-02-01T00:00:00+00:00", ["tensorboard"]
    store = write_store(tmp_path / "store", [late, early, record("pool", "none", "none")])
    study = read_study(store)
    assert [(row.key[-1], row.stages[0]) for row in study.rows] == [("2", "pool"), ("0", "tome")]
    assert study.older == (f"{1:016x}",)
    assert main(["report", str(store), "--no-pictures", "--out", str(tmp_path / "out")]) == 0
    assert "1 older records are left out" in capsys.readouterr().out


def test_the_headline_is_that_of_the_benchmark_with_its_settings(tmp_path: Path) -> None:
    data = record("tome", "none", "none")
    data["config"]["benchmark"] = {"name": f"{__name__}:Apart", "apart": ["count"]}
    (row,) = read_study(write_store(tmp_path, [data])).rows
    assert {kind for kind, counts in zip(row.kinds, row.headline, strict=True) if counts} == {"describe", "photo"}


class Apart(Benchmark):
    """A benchmark whose settings say what stands apart from the headline."""

    apart: tuple[str, ...] = ()

    def load(self) -> list[Sample]:
        return []

    def score(self, prediction: str, sample: Sample) -> float:
        return 0.0

    def headline(self, kind: str) -> bool:
        return kind not in self.apart


def test_the_command_of_a_run_can_be_pasted_into_a_shell(tmp_path: Path) -> None:
    data = record("tome", "none", "none")
    data["overrides"] = ["vision=tome", "vision.r=[1,2]", "model.prompt='USER: <image> {question}'"]
    (row,) = read_study(write_store(tmp_path, [data])).rows
    assert shlex.split(row.command) == ["tokcomp", "run", *data["overrides"]]


def test_a_report_is_written_where_the_model_is_not(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = record("tome", "none", "none")
    data["config"]["model"] = {"name": "mine", "path": "/nowhere/at/all"}
    store = write_store(tmp_path / "store", [data])
    assert main(["report", str(store)]) == 0
    assert "no pictures: model.path=/nowhere/at/all is no folder" in capsys.readouterr().out
    assert (store / "report" / "page.html").is_file()
    assert main(["report", str(store), "--pictures"]) == 2


def test_runs_of_another_device_or_other_defaults_are_compared(tmp_path: Path) -> None:
    one, two, three = (record(name, "none", "none") for name in ("tome", "pool", "random"))
    for data in (one, two, three):
        data["config"]["device"] = "cpu"
    moved, changed = json.loads(json.dumps(one)), json.loads(json.dumps(two))
    moved["config"]["device"] = "cuda"
    changed["config"]["vision"]["new_setting"] = 1
    found = compare(read_study(write_store(tmp_path / "a", [one, two, three])),
                    read_study(write_store(tmp_path / "b", [three, moved, changed])))  # fmt: skip
    assert sorted((a.stages[0], b.stages[0]) for a, b, _ in found.pairs) == [
        (name, name) for name in ("pool", "random", "tome")
    ]
    assert not found.gone
    assert not found.new


def test_the_page_holds_the_dense_answers_of_every_model(tmp_path: Path) -> None:
    one, other = record("tome", "none", "none"), record("tome", "none", "none")
    other["config"]["model"] = {"name": "another"}
    for sample in other["samples"]:
        sample["dense"] = "no"
    data = _data(read_study(write_store(tmp_path, [one, other])), {})
    shown = [{question["dense"] for question in data["questions"][run["set"]]} for run in data["runs"]]
    assert sorted(shown, key=str) == [{"no"}, {"yes"}]


def test_the_picture_of_a_run_with_a_budget_is_that_of_what_ran(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn: list[Any] = []
    monkeypatch.setattr("tokcomp.report.pictures.load_model", lambda *_, **__: None)
    monkeypatch.setattr("tokcomp.report.pictures.render", lambda *given, **__: drawn.append(given[2]))
    data = record("none", "fastv", "none")
    data["config"]["budget"] = {"equivalent_tokens": 64}
    data["budget"] = {
        "stage": "prefill",
        "fields": {"keep_ratio": 0.3, "keep_tokens": None},
        "figure": 64,
        "target": 64,
    }
    draw_pictures(read_study(write_store(tmp_path / "store", [data])).rows, tmp_path)
    assert [spec["prefill"]["keep_ratio"] for spec in drawn] == [0.3]


def test_a_comparison_tells_what_changed(tmp_path: Path) -> None:
    a = write_store(tmp_path / "a", [record("none", "none", "none"), record("tome", "none", "none")])
    b = write_store(tmp_path / "b", [record("none", "none", "none"), record("tome", "none", "none", accuracy=0.4),
                                     record("pool", "none", "none")])  # fmt: skip
    found = compare(read_study(a), read_study(b))
    assert [(x.stages[0], y.stages[0]) for x, y, _ in found.pairs] == [("none", "none"), ("tome", "tome")]
    assert [difference.mean < 0 for *_, difference in found.pairs if difference is not None] == [False, True]
    assert not found.gone
    assert [row.stages[0] for row in found.new] == ["pool"]
    assert main(["report", "--compare", str(a), str(b)]) == 0


def test_damaged_records_are_named_and_left_out(tmp_path: Path) -> None:
    store = write_store(tmp_path, grid())
    (store / "runs" / f"{3:016x}" / "result.json").write_text("{")
    study = read_study(store)
    assert len(study.rows) == 26
    assert "damaged" in study.unread[0]


@pytest.mark.parametrize("kind", ["nothing", "no store", "newer", "empty"])
def test_what_is_no_store_is_refused_in_one_line(kind: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "x"
    if kind != "nothing":
        folder.mkdir()
    if kind in ("newer", "empty"):
        (folder / "store.json").write_text(json.dumps({"schema_version": 99 if kind == "newer" else 1}))
    assert main(["report", str(folder)]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert str(folder) in error
