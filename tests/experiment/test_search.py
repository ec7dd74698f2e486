"""The search: what it draws, that it goes on where it was stopped, refusals."""

from __future__ import annotations

from pathlib import Path

import pytest

from tokcomp.cli.main import main
from tokcomp.errors import ConfigurationError
from tokcomp.experiment.result import Result
from tokcomp.experiment.search import search
from tokcomp.experiment.space import read_space

optuna = pytest.importorskip("optuna")

SPACE = [
    "vision=none,pool,random",
    "cache=none,h2o",
    "vision.random.keep_ratio=interval(0.1,0.9)",
    "vision.pool.window=2,3",
]


def given(untrained: Path) -> list[str]:
    return [
        *SPACE, f"model.path={untrained}", "benchmark.samples=2", "benchmark.max_new_tokens=2", "benchmark.kinds=[count]",
        "measure.timing=false", "measure.memory=false", "device=cpu",
    ]  # fmt: skip


def test_a_setting_is_drawn_only_with_its_strategy() -> None:
    space = read_space(SPACE)
    assert space.choices == {"vision": ("none", "pool", "random"), "cache": ("none", "h2o")}
    trial = optuna.trial.FixedTrial({"vision": "random", "cache": "h2o", "vision.random.keep_ratio": 0.3})
    assert space.overrides(trial) == ["vision=random", "vision.keep_ratio=0.3", "cache=h2o"]
    trial = optuna.trial.FixedTrial({"vision": "pool", "cache": "none", "vision.pool.window": "3"})
    assert space.overrides(trial) == ["vision=pool", "vision.window=3", "cache=none"]


def test_a_range_of_shares_is_drawn_as_it_is_written() -> None:
    space = read_space(["vision=random", "vision.random.keep_ratio=range(0.1,0.5,0.1)"])
    place = "vision.random.keep_ratio (place)"
    drawn = [space.overrides(optuna.trial.FixedTrial({"vision": "random", place: number})) for number in range(4)]
    assert [line[1] for line in drawn] == [f"vision.keep_ratio=0.{number}" for number in (1, 2, 3, 4)]
    space = read_space(["vision=tome", "vision.tome.r=range(9,2,-3)"])
    assert space.overrides(optuna.trial.FixedTrial({"vision": "tome", "vision.tome.r": 6}))[1] == "vision.r=6"


@pytest.mark.parametrize(
    ("overrides", "told"),
    [
        ([], "nothing to search"),
        (["vision=none,tomee"], "did you mean 'tome'"),
        (["vision=none,tome", "vision.tome.rr=range(1,4)"], "did you mean 'r'"),
        (["vision=none,pool", "vision.tome.r=range(1,4)"], "is never drawn"),
        (["vision=none,tome", "seed=0,1"], "cannot be searched"),
        (["vision=tome", "cache=h2o"], "nothing to search"),
        (["vision=tome", "vision.random.keep_ratio=0.1,0.2"], "is never drawn"),
        (["vision=tome", "vision.tome.r=range(4,4)"], "is empty"),
        (["vision=random", "vision.random.keep_ratio=interval(0.9,0.1)"], "give the lower end first"),
        (["vision=none,tome", "--trials=0"], "--trials=0"),
    ],
)
def test_a_wrong_space_is_refused_in_one_line(
    overrides: list[str], told: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["search", "--trials", "1", "--out", str(tmp_path / "s"), *overrides]) == 2
    error = capsys.readouterr().err
    assert told in error
    assert error.count("\n") == 1


@pytest.mark.slow
def test_a_search_goes_on_where_it_was_stopped(untrained: Path, tmp_path: Path) -> None:
    first = search(given(untrained), tmp_path, trials=3, cost="kv_bytes")
    assert (first.trials, len(first.keys), first.failed) == (3, 3, {})
    study = optuna.load_study(study_name="tokcomp", storage=f"sqlite:///{tmp_path / 'search.db'}")
    stopped = study.ask()  # a trial whose process died
    stopped.suggest_categorical("vision", ("none", "pool", "random"))
    more = search(given(untrained), tmp_path, trials=6, cost="kv_bytes")
    assert more.trials == 6
    ended = [trial for trial in study.get_trials() if trial.state == optuna.trial.TrialState.COMPLETE]
    assert len(ended) == 6, "the trial that was stopped is made again and does not count"
    assert all(Result.read(more.store.folder(key) / "result.json").status == "ok" for key in more.keys)
    with pytest.raises(ConfigurationError, match="holds another search"):
        search(given(untrained), tmp_path, trials=7, cost="flops")
    with more.store.claim("search"), pytest.raises(ConfigurationError, match="another process searches"):
        search(given(untrained), tmp_path, trials=7, cost="kv_bytes")


def test_a_search_that_goes_on_draws_other_values(untrained: Path, tmp_path: Path) -> None:
    line = ["vision=random", "vision.random.keep_ratio=interval(0.1,0.9)", *given(untrained)[len(SPACE) :]]
    first, more = (search(line, tmp_path, trials=trials) for trials in (1, 2))
    assert not set(first.keys) & set(more.keys)


def test_a_search_of_which_all_trials_failed_says_why(
    untrained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    line = ["vision=random", "vision.random.keep_ratio=7,8", *given(untrained)[len(SPACE) :]]
    assert main(["search", *line, "--trials", "2", "--out", str(tmp_path)]) == 3
    assert "vision.random.keep_ratio=" in capsys.readouterr().out
