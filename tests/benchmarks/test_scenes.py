"""The benchmark interface and `scenes`."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib.metadata import EntryPoint

import pytest
from PIL import Image

from tokcomp import plugins
from tokcomp.benchmarks import base
from tokcomp.benchmarks.base import Benchmark, Sample, build_benchmark
from tokcomp.benchmarks.scenes import Scenes
from tokcomp.errors import ConfigurationError, PluginWarning


def sample(answer: str) -> Sample:
    return Sample("s", (Image.new("RGB", (8, 8)),), "?", answer, "count")


@pytest.mark.parametrize("said", ["red 3", "Red  3.", " red, 3", "RED 3 "])
def test_words_count_and_nothing_else(said: str) -> None:
    assert Scenes().score(said, sample("red 3")) == 1.0


@pytest.mark.parametrize("said", ["3 red", "red", "red 3 4", "", "red3", "a red 3"])
def test_other_words_are_wrong(said: str) -> None:
    assert Scenes().score(said, sample("red 3")) == 0.0


def test_questions_are_the_data_sets() -> None:
    few, more = (Scenes(samples=n, seed=3, kinds=("count", "photo")).load() for n in (2, 4))
    assert [item.id for item in few] == [item.id for item in more][:2]
    assert [item.kind for item in more] == ["count", "photo"] * 2
    assert more[0].images[0].size == (96, 96)
    assert Scenes(samples=2, seed=4).load()[0].id != few[0].id


def test_the_photo_question_stands_apart() -> None:
    assert not Scenes().headline("photo")
    assert Scenes().headline("count")


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in [name for name in sys.modules if name.startswith("tokcomp.embedded")]:
        monkeypatch.delitem(sys.modules, module)
    monkeypatch.setitem(sys.modules, "sklearn", None)
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    with pytest.raises(ConfigurationError, match=r"benchmark 'scenes' needs sklearn.*pip install 'tokcomp\[demo\]'"):
        Scenes(samples=1).load()


class Parrot(Benchmark):
    """A benchmark of an installed package."""

    def load(self) -> Sequence[Sample]:
        return [sample("yes")] * self.samples

    def score(self, prediction: str, sample: Sample) -> float:
        return 0.5


def test_an_installed_package_adds_a_benchmark(monkeypatch: pytest.MonkeyPatch) -> None:
    points = [
        EntryPoint("parrot", f"{__name__}:Parrot", "tokcomp.benchmarks"),
        EntryPoint("other", f"{__name__}:sample", "tokcomp.benchmarks"),
    ]
    monkeypatch.setattr(plugins, "points", lambda group: points)
    monkeypatch.setattr(base, "_registered", {})
    base._load_plugins.cache_clear()
    with pytest.warns(PluginWarning, match=r"plug-in 'other' \(.*\) was left out: benchmark 'other' is not a subclass"):
        assert base.benchmark_names() == ("parrot", "scenes", "scenes-hard")
    built = build_benchmark({"name": "parrot", "samples": 2})
    assert (built.name, len(built.load())) == ("parrot", 2)
    with pytest.raises(ConfigurationError, match="unknown benchmark 'other'"):
        build_benchmark("other")
