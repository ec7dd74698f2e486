"""What the tests of PruMerge and PruMerge+ share: views of golden cases, and the rule token by token."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy
import torch
from torch import Tensor

from tests.golden_cases import folders, meta
from tokcomp import VisionView
from tokcomp.ops.scores import attention_rows
from tokcomp.testing.vision_views import random_view


def cases(method: str) -> list[tuple[Path, dict[str, Any]]]:
    """The golden cases of one of the two methods, whose names begin alike."""
    chosen = [folder for folder in folders("prumerge") if folder.name.startswith("prumerge_plus") == (method == "plus")]
    return [(folder, case) for folder in chosen for case in meta(folder)["cases"]]


def golden_view(vectors: dict[str, Tensor], depth: int = 24) -> VisionView:
    """The view with the signals of the last block computed from the case's queries and keys."""
    features, key = vectors["features"], vectors["k"]
    b, n, width = features.shape[0], features.shape[1] - 1, features.shape[2]
    row = attention_rows(vectors["q"][:, None, :1], key[:, None], scale=width**-0.5)[:, 0, 0, 1:]
    torch.testing.assert_close(row, vectors["cls_attn"], atol=1e-6, rtol=1e-5)
    signals = {"_unsplit_attention": row, "_unsplit_keys": key[:, 1:]}
    view = random_view([n] * b, (1, n), depth=depth)
    return replace(view, tokens=features[:, 1:], _elsewhere={depth - 1: signals})


def outliers(scores: list[float]) -> int:
    low, high = numpy.percentile(numpy.array(scores, dtype=numpy.float32), [25, 75])
    return sum(score > high + 1.5 * (high - low) for score in scores)


def plain(view: VisionView, row: int, selected: list[int], neighbours: int = 32) -> list[Tensor]:
    """What becomes of one image whose tokens ``selected`` are kept."""
    last = view.at(view.depth - 1)
    count = int(view.counts[row])
    weight, keys, tokens = last.unsplit_attention[row], last.unsplit_keys[row], view.tokens[row]
    rest = [i for i in range(count) if i not in selected]
    if not rest:
        return [tokens[i] for i in range(count)]
    unit = torch.nn.functional.normalize(keys, dim=-1)
    out = []
    for token in selected:
        others = [i for i in range(count) if i != token]
        near = sorted(others, key=lambda i, t=token: (-float(unit[t] @ unit[i]), i))[:neighbours]
        out.append(tokens[token] + sum((weight[i] * tokens[i] for i in near), torch.zeros_like(tokens[0])))
    return [*out, sum((weight[i] * tokens[i] for i in rest), torch.zeros_like(tokens[0]))]
