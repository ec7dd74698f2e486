"""Expected attention, against golden vectors and against the formula spelled out."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from tests.cache.views import alone, prompt_view, random_view, rotation
from tests.golden_cases import cases, group, meta
from tokcomp.cache.expected_attention import ExpectedAttention

GOLDEN = cases("extra_expected_attention", "expected_attention", having="kept_idx")


@pytest.mark.golden
@pytest.mark.parametrize(("folder", "case"), GOLDEN, ids=lambda value: getattr(value, "name", value))
def test_golden(folder: Path, case: str) -> None:
    golden, params = group(folder, case), meta(folder)["cases"][case]["params"]
    keys, values, sinks = golden["k"], golden["v"], params["n_sink"]
    policy = ExpectedAttention(
        keep_tokens=golden["kept_idx"].shape[-1], future=params["n_future_positions"], sinks=sinks,
        covariance=params["use_covariance"], value_norm=params["use_vnorm"],
    )  # fmt: skip
    turn = rotation(keys.shape[2], params["rope_theta"], keys.shape[3])
    view = replace(prompt_view(policy, keys, values), _queries=golden["q"], _rotation=turn)
    torch.testing.assert_close(policy.score(view)[..., sinks:], golden["scores"][..., sinks:], atol=1e-4, rtol=0)
    assert torch.equal(policy.after_prefill(view).keep, golden["kept_idx"])


@pytest.mark.parametrize("value_norm", [True, False])
def test_the_formula(value_norm: bool) -> None:
    policy = ExpectedAttention(keep_tokens=5, future=7, sinks=2, value_norm=value_norm)
    view = random_view([20, 13], policy=policy)
    scores = policy.score(view)
    for row in range(2):
        one, turn = alone(view, row), view.rotation(7)[0].double()
        for head in range(2):
            expected = torch.zeros(one.n_entries - 2, dtype=torch.double)
            for query_head in (2 * head, 2 * head + 1):
                queries = one.queries[0, query_head, 2:].double()
                mean, keys = turn @ queries.mean(0), one.keys[0, head, 2:].double()
                spread = turn @ torch.cov(queries.T, correction=0) @ turn.T
                logits = torch.stack([key @ mean / 2 + key @ spread @ key / 8 for key in keys])  # d = 4
                expected += logits.softmax(0) / 2
            if value_norm:
                expected *= one.values[0, head, 2:].double().norm(dim=-1)
            own = scores[row, head, view.valid[row, 0]][2:].double()
            torch.testing.assert_close(own, expected, atol=1e-5, rtol=1e-4)
