"""Reducers one after the other: what comes out is what the steps do by hand."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from tests.runner.test_signals import tower_without_cls
from tests.tiny_models import llava, pixels, prompt
from tokcomp import VISION, Pipeline, Site
from tokcomp.errors import CompatibilityError, ConfigurationError
from tokcomp.testing.vision_views import random_view
from tokcomp.vision.sequence import Sequence

STEPS = ({"name": "tome", "r": [3, 0, 2]}, {"name": "fastervlm", "keep_tokens": 20}, {"name": "vispruner", "keep_ratio": 0.5},
         {"name": "divprune", "keep_tokens": 6})  # fmt: skip


def test_every_step_acts_where_it_would_alone_and_takes_turns() -> None:
    plan = Sequence(steps=({"name": "evit", "layers": [1]}, *STEPS)).sites(4)
    assert plan == (
        Site.mid(1),
        Site.mid(0),
        Site.mid(2),
        Site.features(),
        replace(Site.features(), turn=1),
        Site.projected(),
    )
    twice = Sequence(steps=({"name": "tome", "r": 1}, {"name": "pitome", "r": 0.1})).sites(2)
    assert twice == (Site.mid(0), Site.mid(1), replace(Site.mid(0), turn=1), replace(Site.mid(1), turn=1))


def test_a_step_sees_the_site_as_its_own() -> None:
    strategy = Sequence(steps=("fastervlm", {"name": "tome", "r": [5, 4]}))
    view = random_view([36], (6, 6), site=Site.mid(1))
    alone = VISION["tome"](r=(5, 4)).reduce(view)
    assert torch.equal(strategy.reduce(view).keep, alone.keep)


@torch.no_grad()
def kept(vision: object, model: object, n: int = 2) -> list[list[int]]:
    with Pipeline(vision=vision).attach(model) as trace:
        model(input_ids=prompt(36, 3, 4).expand(n, -1), pixel_values=pixels(n))
    return [row.tolist() for row in trace.last.kept[0]]


def test_counts_and_traces_follow_all_steps() -> None:
    model = llava()
    with Pipeline(vision={"name": "sequence", "steps": STEPS}).attach(model) as trace, torch.no_grad():
        model(input_ids=prompt(36, 3, 4), pixel_values=pixels())
    record = trace.last
    assert record.after_vision == 6
    assert [tokens[0] for tokens in record.tower_tokens] == [37, 34, 34, 32, 32]
    assert record.projector_tokens == (10,)
    assert {fate.where for fate in record.fate[0] if fate.kind == "dropped"} == {"features", "projected"}
    assert sum(fate.kind != "dropped" for fate in record.fate[0]) >= 6


def test_one_step_is_that_step() -> None:
    model = llava()
    for spec in ({"name": "visionzip", "keep_tokens": 9}, {"name": "prumerge"}, {"name": "mustdrop", "threshold": 0.5},
                 {"name": "evit"}, {"name": "random"}):  # fmt: skip
        assert kept({"name": "sequence", "steps": [spec]}, model) == kept(spec, model)


def test_a_second_choice_by_the_same_scores_is_a_choice_among_the_first() -> None:
    """Both turns read the attention of one block: 20 best, then the 8 best of these, are the 8 best."""
    model = llava()
    steps = [{"name": "fastervlm", "keep_tokens": 20}, {"name": "fastervlm", "keep_tokens": 8}]
    assert kept({"name": "sequence", "steps": steps}, model) == kept({"name": "fastervlm", "keep_tokens": 8}, model)


def test_needs_are_those_of_the_steps() -> None:
    assert Sequence().signals() == VISION["fastervlm"].needs
    model = tower_without_cls()
    assert len(kept("sequence", model, 1)[0]) == 9
    with pytest.raises(CompatibilityError, match="'sequence' needs the attention of a CLS token"):
        kept({"name": "sequence", "steps": ["uniform", "hired"]}, model)


def test_a_wrong_step_is_named() -> None:
    with pytest.raises(ConfigurationError, match=r"vision.sequence.steps\[1\]: .*'kep_ratio' is not a setting"):
        Pipeline(vision={"name": "sequence", "steps": ["uniform", {"name": "random", "kep_ratio": 0.5}]})
    with pytest.raises(ConfigurationError, match="steps"):
        Pipeline(vision={"name": "sequence", "steps": []})
