"""What a family's adapter tells: the parts of one model, by the names that the runner uses."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from tokcomp.models.layout import Call, Layout
from tokcomp.models.projections import QueryKey

__all__ = ["Adapter", "Decoder", "Modality", "Tower", "TowerBlock"]


@dataclass(frozen=True)
class TowerBlock:
    """One transformer block of a vision tower, taken apart at its middle.

    Attributes:
        module: the block itself.
        attention: its attention module (the one that calls the attention function).
        attend: ``(hidden, **kwargs) -> hidden`` first half, residual included.
        feed: ``(hidden) -> hidden`` second half, residual included.
    """

    module: nn.Module
    attention: nn.Module
    attend: Callable[..., Tensor]
    feed: Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Tower:
    """A vision tower and what stands between it and the prompt.

    Attributes:
        module: called once per encoding, with the pixels first.
        blocks: its transformer blocks.
        n_prefix: tokens before the patches inside the tower (CLS, registers).
        has_cls: whether the first prefix token is a trained CLS token.
        feature_block: number of the block whose output the model selects as image features, the deepest where it mixes those
            of several layers.
        entry: the module whose input is one state per unit, as deep in the projector as units go back: the projector
            itself where it works token by token, what follows the folding of patches where it folds them.
        exit: the module whose output is one state of the language model's width per unit.
        layout: the tokens of a call.
        config: the tower's config (its attention implementation is switched while attached).
        branches: modules beside the way to ``exit`` that also make one state per unit of what a block puts out (DeepStack).
        segmented: a packed tower whose blocks take ``cu_seqlens`` and ``position_embeddings``, and whose units are patches
            that stand side by side.
        packed: rows of the tower stand one after another in one sequence instead of in a batch.
        late: methods of the multimodal module behind the projector that may make units, see :class:`Layout`.
        sealed: why tokens cannot leave between the tower's blocks, to complete "...: <reason>"; empty where they can.
    """

    module: nn.Module
    blocks: Sequence[TowerBlock]
    n_prefix: int
    has_cls: bool
    feature_block: int
    entry: nn.Module
    exit: nn.Module
    layout: Callable[[Call], Layout]
    config: Any
    packed: bool = False
    sealed: str = ""
    segmented: bool = False
    branches: Sequence[nn.Module] = ()
    late: tuple[str, ...] = ()


@dataclass(frozen=True)
class Modality:
    """One kind of vision input.

    Attributes:
        kind: ``image`` or ``video``, as in the model's ``mm_encoder_outputs``.
        token_id: its placeholder in the prompt.
        encode: the name of the multimodal module's method that encodes it.
    """

    kind: str
    token_id: int
    encode: str


@dataclass(frozen=True)
class Decoder:
    """The language model's stack of layers.

    Attributes:
        module: the model whose ``forward`` takes ``inputs_embeds`` and runs the layers.
        layers: the decoder layers.
        attentions: their attention modules.
        rotary: ``(hidden, position_ids, layer) -> (cos, sin)``.
        inv_freq: ``layer -> `` its rotary frequencies, for rotating cached keys; None for a layer without rotation.
        planes: planes of position ids that the frequencies turn by: 1, or 3 for multimodal rotary positions (time, row,
            column).
        axes: the plane that each frequency turns by ``[d_rot / 2]``; None for a single plane.
        interleaved: whether rotation pairs neighbouring dimensions, and not the halves.
        windows: per layer, how many tokens back it sees (its own counted), or None for all; empty: no layer has a window.
        tables: per layer, the name of the rotary table that it uses; empty: one for all.
        first_position: position id of a prompt's first token.
        masked: attention is causal only where a mask says so.
        logits: ``layer -> `` what else its attention does to logits, by the names of
            :func:`~tokcomp.ops.scores.attention_rows` (``softcap``, ``sinks``).
        deepstack: how many of the first layers add vision features to their output (arguments ``visual_pos_masks`` and
            ``deepstack_visual_embeds``).
        config: the decoder's config.
        query_key: queries and keys of a layer that has not run; None where the layers' layout hides them.
        norm: the norm before the output head; None where there is none.
    """

    module: nn.Module
    layers: Sequence[nn.Module]
    attentions: Sequence[nn.Module]
    rotary: Callable[..., tuple[Tensor, Tensor]]
    inv_freq: Callable[[int], Tensor | None]
    config: Any
    planes: int = 1
    axes: Callable[[], Tensor | None] = lambda: None
    interleaved: Callable[[], bool] = lambda: False
    query_key: QueryKey | None = None
    norm: Callable[[Tensor], Tensor] | None = None
    deepstack: int = 0
    windows: tuple[int | None, ...] = ()
    tables: tuple[str, ...] = ()
    first_position: int = 0
    masked: bool = False
    logits: Callable[[int], dict[str, Any]] = lambda layer: {}

    def window(self, layer: int) -> int | None:
        """How many tokens back a layer sees, or None for all."""
        return self.windows[layer] if self.windows else None

    def table(self, layer: int) -> str:
        """The name of a layer's rotary table."""
        return self.tables[layer] if self.tables else ""


@dataclass(frozen=True)
class Adapter:
    """One model as the runner sees it.

    Attributes:
        family: name for messages and tables.
        model: the model that was given.
        decoder: its language model.
        tower: its vision tower, None for a plain language model.
        multimodal: the module whose ``forward`` receives ``input_ids`` and splices image features into the prompt.
        modalities: the kinds of vision input, images first.
        embed: the input embedding table, to recognise placeholders in ``inputs_embeds``.
        blocks: for models whose image tokens (or prefix) attend in both directions: from the arguments of
            ``multimodal.forward`` the block of each token ``[b, l]``, -1 for causal ones, or None.
        blocks_pass_window: in layers with a window, blocks see each other beyond it.
        positions: for models that number tokens by the images among them: from the arguments of ``multimodal.forward``, the
            placeholders ``[b, l]`` of each kind and which tokens are no padding (None: all), the position ids ``[p, b, l]``
            of these tokens alone, from 0 on.
    """

    family: str
    model: nn.Module
    decoder: Decoder
    tower: Tower | None = None
    multimodal: nn.Module | None = None
    modalities: tuple[Modality, ...] = ()
    embed: nn.Module | None = None
    blocks: Callable[[Mapping[str, Any]], Tensor | None] | None = None
    blocks_pass_window: bool = False
    positions: Callable[[Mapping[str, Any], Mapping[str, Tensor], Tensor | None], Tensor] | None = None
