"""What prefill filters keep to beyond the contract kit's rules."""

from __future__ import annotations

import pytest
import torch

from tests.contracts.settings import of_stage
from tokcomp import PREFILL, PrefillFilter
from tokcomp.errors import CompatibilityError
from tokcomp.testing.prefill_views import random_view


@pytest.mark.parametrize("strategy", of_stage("prefill"), ids=repr)
@pytest.mark.parametrize("counts", [[7], [12, 1, 5]], ids=str)
def test_where_all_are_key_tokens_all_stay(strategy: PrefillFilter, counts: list[int]) -> None:
    view = random_view(counts, filter=strategy, layer=strategy.acts_after(8)[0], depth=8, protected=1.1)
    assert strategy.of_layer(view.layer, view.depth).respects_protected
    assert torch.equal((strategy.filter(view).keep >= 0).sum(dim=1), view.counts)


def test_a_model_that_is_too_shallow_is_refused() -> None:
    with pytest.raises(CompatibilityError, match="beyond this model's 2 layers"):
        PREFILL["fastv"]().acts_after(2)
