"""What "FLOPs reduction" means in the papers: the same run of a model, counted by each published convention.

Papers divide by different things. A formula per layer may count the vision tokens alone or the whole sequence, two MLP
matrices or three, and no paper counts the tower, the projector and the head. The conventions here:

- ``fastv``: FastV's formula ``4 n d^2 + 2 n^2 d + 2 n d m`` per layer (multiply-adds; n tokens, d width, m MLP width)
  over all tokens of the sequence ("An Image is Worth 1/2 Tokens After Layer 2", arXiv 2403.06764). That n is the whole
  sequence follows from the authors' figures: K=3, R=50 % on LLaVA-1.5-7B costs "57 %", which takes 34 to 48 text
  tokens, and the "45 %" that K=2, R=50 % saves on 13B takes about as many; over vision tokens alone they would be 54 %
  and 48 %.
- ``fastv-vision``: the same formula over the vision tokens alone.
- ``gated``, ``gated-vision``: ``4 n d^2 + 2 n^2 d + 3 n d m``, with all three matrices of a gated MLP, as PyramidDrop
  (arXiv 2410.17247) counts it; the exact arithmetic of a Llama layer with as many key/value heads as heads.
- ``prefill``: tokcomp's own count of the language model's layers (grouped key/value heads included).
- ``first-token``: everything until the first token: tower, projector, layers, one row of the head, selection.
- ``answer``: everything until the last token.

**MustDrop's headline**, "about 88.5 % FLOPs [...] with a compression ratio of 92.2 %" (arXiv 2411.10803, abstract), is
576 vision tokens cut to 45. The abstract does not say how FLOPs are counted, and more than one count gives 88.5 %:

- 45 tokens in every layer, the whole sequence counted (``fastv``, ``prefill`` or ``first-token``) and about 26 text
  tokens in the prompt; it is 87.1 % with 36 text tokens and 83.4 % with 64;
- an average of 45 as the authors take it (over the layers' outputs: layers 0 to 2 still process what the tower hands
  over), no text, the tower counted (``first-token``), and about 315 tokens left by the tower's merge (325 is the most
  that the key tokens allow at that average).

Over vision tokens alone, 45 in every layer would save 92.4 %. :func:`reductions` therefore shows all conventions side by
side, so that no single one is passed off as *the* reduction.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from tokcomp.measure.flops import count
from tokcomp.measure.shape import ModelShape
from tokcomp.measure.workload import Workload

__all__ = ["CONVENTIONS", "Convention", "Reduction", "layer_formula", "reductions"]


def layer_formula(tokens: float, shape: ModelShape, *, mlp_matrices: int = 2) -> float:
    """The papers' cost of one layer, in multiply-adds: ``4 n d^2 + 2 n^2 d + (2 or 3) n d m``.

    Args:
        tokens: n.
        shape: gives d (``hidden``) and m (``intermediate``); grouped key/value heads are not considered.
        mlp_matrices: 2 as FastV counts, 3 for a gated MLP.
    """
    d, m = shape.hidden, shape.intermediate
    return 4 * tokens * d**2 + 2 * tokens**2 * d + mlp_matrices * tokens * d * m


@dataclass(frozen=True)
class Convention:
    """A way to count one run.

    Attributes:
        name: short name.
        meaning: what is counted, one line.
        cost: the count itself (units differ between conventions; only ratios compare).
    """

    name: str
    meaning: str
    cost: Callable[[ModelShape, Workload], float]


def _formula(tokens: Sequence[float], shape: ModelShape, mlp_matrices: int) -> float:
    return sum(layer_formula(entering, shape, mlp_matrices=mlp_matrices) for entering in tokens)


CONVENTIONS: tuple[Convention, ...] = (
    Convention(
        "fastv",
        "FastV's formula, layers of the prefill, all tokens",
        lambda shape, work: _formula(work.layer_tokens, shape, 2),
    ),
    Convention(
        "fastv-vision",
        "FastV's formula, layers of the prefill, vision tokens only",
        lambda shape, work: _formula(work.vision_tokens, shape, 2),
    ),
    Convention(
        "gated",
        "the formula with a gated MLP, layers of the prefill, all tokens",
        lambda shape, work: _formula(work.layer_tokens, shape, 3),
    ),
    Convention(
        "gated-vision",
        "the formula with a gated MLP, layers of the prefill, vision tokens only",
        lambda shape, work: _formula(work.vision_tokens, shape, 3),
    ),
    Convention(
        "prefill",
        "exact count, layers of the prefill",
        lambda shape, work: count(shape, work).prefill,
    ),
    Convention(
        "first-token",
        "exact count, tower to first token",
        lambda shape, work: count(shape, work).first_token,
    ),
    Convention(
        "answer",
        "exact count, tower to last token",
        lambda shape, work: count(shape, work).total,
    ),
)


@dataclass(frozen=True)
class Reduction:
    """One row of the table: a convention, the two costs, and the share that compression saves (0.885 for 88.5 %)."""

    convention: str
    meaning: str
    dense: float
    compressed: float

    @property
    def saved(self) -> float:
        return 1 - self.compressed / self.dense


def reductions(shape: ModelShape, dense: Workload, compressed: Workload) -> tuple[Reduction, ...]:
    """The reduction of one run by every convention.

    Args:
        shape: the model.
        dense: the work of the unmodified model; it must have vision tokens.
        compressed: the work of the same prompt under compression.

    Raises:
        ValueError: ``dense`` has no vision tokens: there is nothing to reduce.
    """
    if not any(dense.vision_tokens):
        raise ValueError("the dense workload has no vision tokens (layer_tokens equals text_tokens)")
    return tuple(
        Reduction(way.name, way.meaning, way.cost(shape, dense), way.cost(shape, compressed)) for way in CONVENTIONS
    )
