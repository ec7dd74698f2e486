"""The read-only view that reducers get of the vision stage. Notation: see :mod:`tokcomp.types`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from torch import Tensor

from tokcomp.signals import Signal, Site, declared
from tokcomp.views import TokenView

__all__ = ["VisionView"]


@dataclass(frozen=True, kw_only=True)
class VisionView(TokenView):
    """What a :class:`~tokcomp.VisionReducer` sees of a batch of images at one site.

    Attributes:
        site: where in the vision stage this is.
        depth: number of blocks of the tower.
        tokens: patch tokens ``[b, n, d]``, prefix tokens (CLS) left out.
        valid: ``[b, n]``, False where a row is padding of a ragged batch.
        sizes: how many original patches each token stands for ``[b, n]`` float.
        origin: index of the original patch that each token stands at ``[b, n]``, raster order.
        protected: key tokens marked so far ``[b, n]`` bool.
        grid: rows and columns of the original patch grid.
        owners: the image that each row belongs to, ascending, where large images come in several rows: a thumbnail of the
            whole first, then its tiles in raster order. Empty: every row is an image of its own.
        n_prefix: prefix tokens (CLS, registers) that stand before the patches in the tower.
        has_cls: whether the first of them is a CLS token. In a tower without one, a reducer that declares
            ``without_cls = "received"`` finds what each token *receives* in the place of the CLS token's attention: the
            mean over heads and over the rows of all of the image's own tokens.
    """

    site: Site
    depth: int
    grid: tuple[int, int]
    owners: tuple[int, ...] = ()
    n_prefix: int = 0
    has_cls: bool = True
    _keys: Tensor | None = field(default=None, repr=False)
    _cls_attention: Tensor | None = field(default=None, repr=False)
    _unsplit_attention: Tensor | None = field(default=None, repr=False)
    _unsplit_keys: Tensor | None = field(default=None, repr=False)
    _cls_token: Tensor | None = field(default=None, repr=False)
    _text_relevance: Tensor | None = field(default=None, repr=False)
    _elsewhere: Mapping[int, Mapping[str, Tensor]] = field(default_factory=dict, repr=False)

    def at(self, block: int) -> VisionView:
        """This view with the signals of tower block ``block``, one of those that the reducer ``looks_at``. Tokens that
        were merged since carry the signals of the token that they stand at."""
        if block not in self._elsewhere:
            raise LookupError(
                f"the attention of tower block {block} was not looked at: name the block in the strategy's `looks_at` "
                f"(it names {sorted(self._elsewhere)})"
            )
        blank: dict[str, Tensor | None] = dict.fromkeys(
            ("_keys", "_cls_attention", "_unsplit_attention", "_unsplit_keys")
        )
        there = self._elsewhere[block]
        own = {name: value for name, value in there.items() if name.startswith("_")}
        extra = {name: value for name, value in there.items() if name not in own}
        return replace(self, **(blank | own), _extra=extra)  # type: ignore[arg-type]

    @property
    def keys(self) -> Tensor:
        """Attention keys of the block that the site belongs to, mean over heads ``[b, n, d_head]``."""
        return declared(self._keys, Signal.KEYS)

    @property
    def cls_attention(self) -> Tensor:
        """Attention row of the CLS token over the patches ``[b, h, n]``, softmax in float32 over all keys (the CLS
        column is left out without renormalising); 0 for padding. Without CLS token ``[b, 1, n]``, see ``has_cls``."""
        return declared(self._cls_attention, Signal.CLS_ATTENTION)

    @property
    def unsplit_attention(self) -> Tensor:
        """The CLS row of an attention whose heads are not split ``[b, n]``: one softmax in float32 over the full width
        of query and key, scale ``width ** -0.5`` (PruMerge's); 0 for padding. Without CLS token see ``has_cls``."""
        return declared(self._unsplit_attention, Signal.UNSPLIT_ATTENTION)

    @property
    def unsplit_keys(self) -> Tensor:
        """Attention keys of the block that the site belongs to, all heads side by side ``[b, n, h * d_head]``."""
        return declared(self._unsplit_keys, Signal.UNSPLIT_KEYS)

    @property
    def text_relevance(self) -> Tensor:
        """How much each token has to do with the prompt's text ``[b, n]`` float32: the mean cosine of its state behind the
        projector with the language model's input embeddings of the text after the last image (of all text, where none comes
        after). Only at the site ``projected``."""
        return declared(self._text_relevance, Signal.TEXT_RELEVANCE)

    @property
    def has_cls_token(self) -> bool:
        """Whether the CLS token can be handed on: there is one, and a patch of the feature layer is a token like it."""
        return self._cls_token is not None

    @property
    def cls_token(self) -> Tensor:
        """The CLS token's own state at the feature layer ``[b, d]``; only where ``has_cls_token``."""
        return declared(self._cls_token, Signal.CLS_TOKEN)
