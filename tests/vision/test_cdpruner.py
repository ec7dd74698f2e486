"""CDPruner against the published vectors, a plain loop, and its guidance in a model."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from tests.golden_cases import folders, group, meta
from tests.tiny_models import batch, generate, llava, pixels, prompt
from tokcomp import Pipeline, Site
from tokcomp.errors import CompatibilityError, UnsupportedError
from tokcomp.ops.relevance import clip_relevance, in_unit_range
from tokcomp.testing.vision_views import random_view
from tokcomp.vision.cdpruner import CDPruner

CASES = [pytest.param(folder, case, id=f"{folder.name}-{case['name']}")
         for folder in folders("cdpruner") for case in meta(folder)["cases"]]  # fmt: skip


@pytest.mark.golden
@pytest.mark.parametrize(("folder", "case"), CASES)
def test_published_vectors(folder: Path, case: dict[str, Any]) -> None:
    """With the published relevance; the code takes minimum and maximum over the batch, as if it were one image."""
    vectors = group(folder, case["name"])
    features = vectors["features"]
    b, n, _ = features.shape
    relevance = clip_relevance(vectors["image_embeds"], vectors["text_embeds"])
    view = replace(random_view([n] * b, (1, n), site=Site.projected()), tokens=features, _text_relevance=relevance,
                   owners=(0,) * b)  # fmt: skip
    torch.testing.assert_close(
        in_unit_range(relevance, view.valid, view.owners), vectors["relevance"], atol=1e-5, rtol=1e-5
    )
    assert torch.equal(CDPruner(keep_tokens=case["params"]["T"]).reduce(view).keep, vectors["kept"])


def plain(features: Tensor, relevance: Tensor, tokens: int) -> list[int]:
    """Greedily the largest determinant, which is computed anew for every candidate."""
    low, high = relevance.min(), relevance.max()
    quality = (relevance - low + 1e-6) / (high - low) if high > low else torch.ones_like(relevance)
    unit = torch.nn.functional.normalize(features, dim=-1).double()
    kernel = quality.double()[:, None] * (unit @ unit.T) * quality.double()
    chosen: list[int] = []
    while len(chosen) < tokens:
        left = [i for i in range(len(features)) if i not in chosen]
        chosen.append(max(left, key=lambda i: (float(torch.linalg.det(kernel[[*chosen, i]][:, [*chosen, i]])), -i)))
    return sorted(chosen)


@settings(max_examples=25, deadline=None)
@given(counts=st.lists(st.integers(1, 20), min_size=1, max_size=3), tokens=st.integers(1, 6), seed=st.integers(0, 99))
def test_equals_the_plain_rule(counts: list[int], tokens: int, seed: int) -> None:
    """As long as the kernel has the rank: the features have 8 dimensions."""
    view = random_view(counts, (4, 5), site=Site.projected(), seed=seed)
    selection = CDPruner(keep_tokens=tokens).reduce(view)
    selection.check(view.n_tokens, batch_size=len(counts), valid=view.valid)
    for row, count in enumerate(counts):
        kept = [i for i in selection.keep[row].tolist() if i >= 0]
        assert kept == plain(view.tokens[row, :count], view.text_relevance[row, :count], min(tokens, count))


def test_where_the_rank_is_used_up_the_first_tokens_follow() -> None:
    tokens = torch.tensor([[[1.0, 0.0], [1.0, 0.0], [1.0, 0.0], [0.0, 1.0], [0.0, 1.0]]])
    view = replace(random_view([5], (1, 5), site=Site.projected()), tokens=tokens,
                   _text_relevance=torch.tensor([[0.0, 1.0, 1.0, 1.0, 0.0]]))  # fmt: skip
    assert CDPruner(keep_tokens=4).reduce(view).keep.tolist() == [[0, 1, 2, 3]]


@torch.no_grad()
def test_the_text_decides() -> None:
    """Another question, another choice; in forward() as in generate(), in a batch as alone."""
    model, image = llava(), pixels()
    pipeline = Pipeline(vision={"name": "cdpruner", "keep_tokens": 9})
    questions = [prompt(36, 4, 6, seed=seed) for seed in (1, 2)]
    questions[1] = torch.cat([questions[0][:, :-6], questions[1][:, -6:]], dim=1)
    with pipeline.attach(model) as trace:
        for ids in questions:
            model(input_ids=ids, pixel_values=image)
        generate(model, 2, input_ids=questions[0], pixel_values=image)
        generate(model, 2, input_ids=questions[0], pixel_values=image, num_beams=2)
        longer = torch.cat([prompt(36, 9, 2, seed=5)[:, :9], questions[1][:, 4:]], dim=1)
        generate(model, 2, **batch(questions[0], longer), pixel_values=image.expand(2, -1, -1, -1))
    first, second, alone, beams, together = (record.kept[0] for record in trace.requests)
    assert first[0].tolist() != second[0].tolist()
    assert alone[0].tolist() == first[0].tolist() == beams[0].tolist() == beams[1].tolist() == together[0].tolist()
    assert together[1].tolist() == second[0].tolist()  # what stands before the image does not matter
    assert "generate" not in vars(model)


@torch.no_grad()
def test_no_text_is_refused() -> None:
    model = llava()
    with Pipeline(vision="cdpruner").attach(model):
        with pytest.raises(
            CompatibilityError, match="'cdpruner' is guided by the prompt's text, and a prompt has none"
        ):
            model(input_ids=prompt(36, 0, 0), pixel_values=pixels())
        with pytest.raises(UnsupportedError, match="these images are encoded without one"):
            model.model.get_image_features(pixel_values=pixels())
        model(input_ids=prompt(36, 3, 0), pixel_values=pixels())  # text before the image will do
