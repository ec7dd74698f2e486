"""PiToMe: merges tokens that have many like them, and leaves those that stand alone."""

from __future__ import annotations

from typing import ClassVar

from pydantic import Field

from tokcomp.ops.matching import energy_matching
from tokcomp.registry import VISION
from tokcomp.stages import VisionReducer
from tokcomp.types import Selection, Signal, Site, VisionView

__all__ = ["PiToMe"]


@VISION.register("pitome")
class PiToMe(VisionReducer):
    """Merges, in every tower block, the tokens that have most others like them; tokens of their own kind are never touched.

    Tran et al., "Accelerating Transformers with Spectrum-Preserving Token Merging", NeurIPS 2024, arXiv 2405.16148. Acts between
    attention and MLP of each block, as ToMe does; the tower itself gets faster, too.

    With the cosines c_ij of the block's attention keys (mean over heads) the energy of a token is
    ``E_i = (1 / n) sum_{j != i} f(c_ij)``, ``f(x) = x`` for ``x >= m``, else ``alpha (exp(x - m) - 1)``; the margin m falls from
    0.9 in the first block to 0 behind the last one. Of the ``2 r`` tokens of highest energy, by descending energy, those at even
    places merge each into the most similar one at an odd place (:func:`tokcomp.ops.matching.energy_matching`), as the mean
    weighted by sizes. Untouched tokens come first, then the merged ones.

    Written from the paper; the authors' code was not run against it. There is no published number of tokens for
    vision-language models; the default share is ToMe's here. Key tokens (``protected``) neither merge nor are merged into.

    Attributes:
        r: tokens to merge in each block, as a share of the image's patches (at least one token unless it is 0).
        alpha: weight of tokens beyond the margin, the paper's alpha.
        proportional_attention: add log(size) to the attention logits of merged tokens.
    """

    needs: ClassVar[frozenset[Signal]] = frozenset({Signal.KEYS})
    paper: ClassVar[str] = (
        "Accelerating Transformers with Spectrum-Preserving Token Merging, NeurIPS 2024, arXiv 2405.16148"
    )

    r: float = Field(default=0.028, ge=0, lt=0.5, description="tokens to merge per block, as a share of the patches")
    alpha: float = Field(default=1.0, ge=0, description="weight of tokens beyond the margin")
    proportional_attention: bool = Field(
        default=True, description="add log(size) to the attention logits of merged tokens"
    )

    def sites(self, depth: int) -> tuple[Site, ...]:
        return tuple(Site.mid(layer) for layer in range(depth)) if self.r else ()

    def reduce(self, view: VisionView) -> Selection:
        margin = 0.9 - 0.9 * (view.site.layer or 0) / view.depth
        r = max(1, round(self.r * view.grid[0] * view.grid[1]))
        return energy_matching(view.keys, r, margin=margin, alpha=self.alpha, valid=view.valid, locked=view.protected,
                               complete=not view.padded)  # fmt: skip

    def weighs_attention(self) -> bool:
        return self.proportional_attention
