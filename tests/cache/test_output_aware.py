"""Output-aware eviction, against golden vectors and against a loop over its rule."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError

from tests.cache.views import Layer, alone, kept, random_view
from tests.golden_cases import cases, group, meta
from tokcomp import CacheView
from tokcomp.cache.output_aware import OutputAware

GOLDEN = cases("output_aware_vision", having="alive_after_step")


def policy_of(params: dict[str, Any]) -> OutputAware:
    """A golden case's fields in this package's words."""
    common = {"start": params["warm"], "every": params["m"], "decay": params["lam"], "prior": params["w0"],
              "observed": params["obs"], "mode": params["mode"]}  # fmt: skip
    if params["mode"] == "threshold":
        return OutputAware(**common, threshold=params["tau"], most=params["rho"], final_tokens=params.get("n_min", 1))
    first, last = (int(number) for number in params["K"].split("(")[2].split(")")[0].split("-"))
    over = int(params["K"].split("/")[1].split(",")[0])
    assert last == params["vis_n"]
    return OutputAware(**common, final_tokens=first, over=over)


@pytest.mark.golden
@pytest.mark.parametrize(("folder", "case"), GOLDEN, ids=lambda value: getattr(value, "name", value))
def test_golden(folder: Path, case: str) -> None:
    golden, params = group(folder, case), meta(folder)["cases"][case]["params"]
    keys, values, query = golden["k"], golden["v"], golden["q"]
    first, n = params["sys_n"], params["vis_n"]
    prompt = first + n + params["text_n"]
    policy = policy_of(params)
    marked = torch.tensor(params["protected"]) + first
    layer = Layer(policy, params["B"], params["Hkv"], params["D"], group=params["H"] // params["Hkv"],
                  vision=range(first, first + n), protected=marked)  # fmt: skip
    layer.attend(query[:, :, :prompt], keys[:, :, :prompt], values[:, :, :prompt])
    for step in range(params["steps"]):
        now = slice(prompt + step, prompt + step + 1)
        output = layer.attend(query[:, :, now], keys[:, :, now], values[:, :, now])
        torch.testing.assert_close(output, golden["attn_out"][step], atol=1e-4, rtol=0)
        score = torch.zeros(params["B"], n)
        for row in range(params["B"]):
            entries = layer.index[row, 0]
            here = (entries >= first) & (entries < first + n)
            alive = torch.zeros(n, dtype=torch.bool)
            alive[entries[here] - first] = True
            assert torch.equal(alive, golden["alive_after_step"][step, row])
            score[row, entries[here] - first] = policy.scores(layer.memory["mass"][row, 0], step + 1)[here]
        torch.testing.assert_close(score, golden["score_after_step"][step], atol=1e-4, rtol=0)


def steps(policy: OutputAware, view: CacheView, n: int) -> list[list[int]]:
    """Vision entries of the only sample after each of n steps that see the same attention."""
    policy.after_prefill(view)
    left = []
    for t in range(1, n + 1):
        now = replace(view, generated=t)
        selection = policy.after_step(now)
        entries = set(kept(selection, now, 0)[0])
        left.append([i for i in view.index[0, 0][view.vision[0, 0]].tolist() if i in entries])
    return left


def test_waits_and_then_acts_every_few_tokens() -> None:
    policy = OutputAware(start=3, every=2, final_tokens=4)
    view = random_view([24], policy=policy)
    counts = [len(entries) for entries in steps(policy, view, 7)]
    whole = int(view.initial)
    # Each step is asked on the same whole cache: None where it does not act.
    assert counts == [whole, whole, 4, whole, 4, whole, 4]


@pytest.mark.parametrize("reduce", ["max", "mean"])
def test_the_lowest_mass_leaves(reduce: str) -> None:
    policy = OutputAware(start=2, every=1, final_tokens=5, decay=0.9, prior=2.0, reduce=reduce)
    view = random_view([24, 17], policy=policy, protected=0.1)
    policy.after_prefill(view)
    policy.after_step(replace(view, generated=1))
    selection = policy.after_step(replace(view, generated=2))
    for row in range(2):
        one = alone(view, row)
        over = max if reduce == "max" else lambda pair: sum(pair) / 2
        real = one._attention_rows.real[0]
        rows = one._attention_rows.attention[0][:, real].unflatten(0, (2, 2)).mean(dim=1)  # (g, t, l)
        first = [sum(over(pair) for pair in zip(*column, strict=True)) / int(real.sum())
                 for column in rows.permute(2, 0, 1).tolist()]  # fmt: skip
        seen = [over(pair) for pair in zip(*(one.received[0] / 2).tolist(), strict=True)]
        mass = [(2.0 * a * 0.9 + b) * 0.9 + b for a, b in zip(first, seen, strict=True)]
        vision = one.vision[0, 0].tolist()
        must = {i for i in range(one.n_entries) if not vision[i] or one.protected[0, 0, i]}
        room = max(5 - sum(i in must and vision[i] for i in range(len(mass))), 0)
        others = sorted((i for i in range(len(mass)) if i not in must), key=lambda i: (-mass[i], i))[:room]
        expected = one.index[0, 0, sorted(must | set(others))].tolist()
        assert kept(selection, view, row) == [expected] * 2


def test_a_threshold_takes_no_more_than_its_share() -> None:
    policy = OutputAware(mode="threshold", start=1, every=1, threshold=50.0, most=0.25, final_tokens=3)
    view = random_view([40], policy=policy)
    n = int(view.initial)
    assert [len(entries) for entries in steps(policy, view, 1)] == [n - int(n * 0.25)]
    none = OutputAware(mode="threshold", start=1, every=1, threshold=0.0)
    assert [len(entries) for entries in steps(none, view, 1)] == [n]
    floor = OutputAware(mode="threshold", start=1, every=1, threshold=50.0, most=1.0, final_tokens=3)
    assert [len(entries) for entries in steps(floor, view, 1)] == [3]


def test_the_budget_falls_in_a_straight_line() -> None:
    policy = OutputAware(start=2, every=1, over=4, final_tokens=2)
    view = random_view([24], policy=policy)
    n = int(view.initial)
    expected = [n, n, *(round(n + (2 - n) * share) for share in (0.25, 0.5, 0.75, 1.0))]
    assert [len(entries) for entries in steps(policy, view, 6)] == expected


def test_a_turn_of_several_tokens_may_hold_an_event() -> None:
    policy = OutputAware(start=5, every=10, final_tokens=2)
    view = random_view([24], policy=policy)
    policy.after_prefill(view)
    assert policy.after_step(replace(view, generated=4, n_queries=4)) is None
    assert policy.after_step(replace(view, generated=8, n_queries=4)) is not None
    assert policy.after_step(replace(view, generated=14, n_queries=6)) is None


def test_fields() -> None:
    assert OutputAware(final_tokens=9).final_ratio is None
    with pytest.raises(ValidationError, match="give final_ratio"):
        OutputAware(final_tokens=9, final_ratio=0.5)
    with pytest.raises(ValidationError, match="keep_text"):
        OutputAware(keep_text=False)
