"""The dry run of every cache policy: lengths as the budgets say, work for what the runner computes, or a clear question."""

from __future__ import annotations

from typing import Any

import pytest

from tokcomp import CACHE, Pipeline
from tokcomp.errors import ConfigurationError
from tokcomp.measure.schedule import expected_workload
from tokcomp.measure.shape import named_shape

SHAPE = named_shape("llava-1.5-7b")
PROMPT = 640
COUNTED: dict[str, tuple[dict[str, Any], float]] = {
    "snapkv": ({"keep_tokens": 100}, 100),
    "tova": ({"keep_tokens": 100}, 100),
    "knorm": ({"keep_ratio": 0.5}, 320),
    "keydiff": ({"keep_tokens": 100}, 100),
    "adakv": ({"base": {"name": "snapkv", "keep_tokens": 100}}, 100),
    "lookm": ({"keep_tokens": 100}, 100),
    "merging": ({"base": {"name": "snapkv", "keep_tokens": 100}}, 100),
    "expected_attention": ({"keep_tokens": 100}, 100),
    "interval": ({"base": {"name": "knorm", "keep_tokens": 100}, "every": 2}, PROMPT),
    "output_aware": ({"start": 1, "every": 1, "final_tokens": 36}, PROMPT),
    "by_layer": ({"ranges": [{"policy": {"name": "knorm", "keep_tokens": 100}}]}, 100),
}


def expected(fields: dict[str, Any] | None, **options: Any) -> Any:
    pipeline = None if fields is None else Pipeline(cache=fields)
    return expected_workload(SHAPE, pipeline, image_tokens=576, text_tokens=64, text_before=35, new_tokens=4, **options)


@pytest.mark.parametrize("name", COUNTED)
def test_lengths_follow_from_the_fields(name: str) -> None:
    fields, entries = COUNTED[name]
    found = expected({"name": name, **fields})
    assert found.cache_lengths == (entries,) * 32
    assert not found.assumptions


def test_a_pyramid_has_the_mean_that_was_stated() -> None:
    lengths = expected({"name": "pyramidkv", "keep_tokens": 100}).cache_lengths
    assert sum(lengths) == 3200
    assert lengths[0] > 150 > lengths[-1]


def test_steps_read_what_is_left() -> None:
    steps = expected({"name": "output_aware", "start": 1, "every": 1, "final_tokens": 36}).workload.decode_lengths
    # The first step reads the whole cache; its own entry and 64 text tokens stay, and 36 vision entries.
    assert [step[0] for step in steps] == [PROMPT + 1, 36 + 64 + 2, 36 + 64 + 3]
    steps = expected(
        {"name": "interval", "base": {"name": "knorm", "keep_tokens": 100}, "every": 2}
    ).workload.decode_lengths
    assert [step[0] for step in steps] == [PROMPT + 1, PROMPT + 2, 101]


def test_budgets_by_content_are_asked_for() -> None:
    with pytest.raises(ConfigurationError, match="cache 'vlcache' keeps depends on the image"):
        expected({"name": "vlcache"})
    assert expected({"name": "vlcache"}, assume={"cache": 64}).cache_lengths == (64,) * 32


def test_scores_are_those_of_the_rows_that_are_looked_at() -> None:
    looked_at = ("snapkv", "tova", "lookm", "output_aware", "knorm", "expected_attention")
    found = {name: expected({"name": name, **COUNTED[name][0]}).workload.scores for name in looked_at}
    rows = {name: {score.rows for score in scores} for name, scores in found.items()}
    assert rows["snapkv"] == {29}  # 64, but no further back than the image
    assert rows["tova"] == {1}
    assert rows["lookm"] == {640}
    assert rows["output_aware"] == {29, 1}
    assert rows["knorm"] == rows["expected_attention"] == set()
    assert {score.rows for score in expected({"name": "vlcache"}, assume={"cache": 64}).workload.scores} == {29}


def test_every_policy_was_asked() -> None:
    assert set(CACHE) - set(COUNTED) == {"h2o", "mustdrop", "pyramidkv", "random", "streaming_llm", "vlcache"}
