"""CDPruner: tokens that differ from each other and have to do with the question."""

from __future__ import annotations

from typing import ClassVar

import torch

from tokcomp.budget import SharedBudget
from tokcomp.ops.diversity import greedy_map
from tokcomp.ops.relevance import in_unit_range
from tokcomp.registry import VISION
from tokcomp.stages import VisionReducer
from tokcomp.types import Selection, Signal, Site, VisionView

__all__ = ["CDPruner"]


@VISION.register("cdpruner")
class CDPruner(SharedBudget, VisionReducer):
    """Keeps the tokens that are most diverse, given how much each has to do with the prompt's text.

    Zhang et al., "Beyond Attention or Similarity: Maximizing Conditional Diversity for Token Pruning in MLLMs", NeurIPS 2025,
    arXiv 2506.10967. Acts after the projector; nothing is merged, survivors stand in image order.

    With the cosines S of the tokens and the relevance r, brought to ``q = (r - min + 1e-6) / (max - min)``, tokens are chosen
    one by one so that the determinant of the kernel ``q_i S_ij q_j`` over those chosen grows most
    (:func:`tokcomp.ops.diversity.greedy_map`): a determinantal point process under the condition of the text.

    **The relevance is a substitute.** The authors take the negative cosine of patches and question in CLIP's joint space
    (:func:`tokcomp.ops.relevance.clip_relevance`, which the parity tests use). The models here come with CLIP's image side
    only, without its text tower and visual projection, and with token ids in a chat template instead of the question. In its
    place stands the mean cosine of a token, behind the projector, with the language model's input embeddings of the text
    after the image. Images that are encoded without a prompt (``get_image_features`` by itself) are refused, and so is a
    prompt without text.

    Further departures from the authors' code: minimum and maximum of r are each image's own (all of its tiles together), where
    the code takes them over the batch; where the kernel's rank is used up the tokens of lowest index follow, where the code
    divides by zero.

    Attributes:
        keep_ratio: share of the tokens that is kept. The default gives way where ``keep_tokens`` is given.
        keep_tokens: number of tokens that is kept, the paper's T; of every tile, where an image has several.
    """

    needs: ClassVar[frozenset[Signal]] = frozenset({Signal.TEXT_RELEVANCE})
    paper: ClassVar[str] = (
        "Beyond Attention or Similarity: Maximizing Conditional Diversity for Token Pruning in MLLMs, NeurIPS 2025, "
        "arXiv 2506.10967"
    )

    def departures(self) -> dict[str, str]:
        return {"cost": "one operation per kept token: each choice depends on those before it, as published"}

    def sites(self, depth: int) -> tuple[Site, ...]:
        return (Site.projected(),)

    def reduce(self, view: VisionView) -> Selection:
        owners = view.owners or tuple(range(view.batch_size))
        quality = in_unit_range(view.text_relevance, view.valid, owners)
        steps = self.budget.resolve(view.n_tokens)
        order = greedy_map(view.tokens, quality, steps, view.valid)
        wanted = torch.arange(steps, device=view.device) < self.budget.resolve(view.counts)[:, None]
        chosen = torch.zeros_like(view.valid).scatter(1, order, wanted)
        return Selection.from_mask(chosen, count=None if view.padded else steps)
