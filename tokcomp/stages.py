"""The three interfaces. A strategy looks at a read-only view and returns a Selection; the runner applies it.

A strategy is a frozen pydantic model: its fields are its configuration. It holds no state and names no model.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

from tokcomp.deprecation import current_fields
from tokcomp.errors import CompatibilityError, StateError
from tokcomp.layers import LayerSpec, resolve_layer, resolve_stages
from tokcomp.plugin_signals import PluginSignal, expanded
from tokcomp.types import CacheView, PrefillView, Selection, Signal, Site, VisionView

__all__ = [
    "AnySignal",
    "CachePolicy",
    "CompatibilityError",
    "LayerSpec",
    "PrefillFilter",
    "Strategy",
    "VisionReducer",
    "resolve_layer",
    "resolve_stages",
]


AnySignal = Signal | PluginSignal


class Strategy(BaseModel, ABC):
    """What all strategies share: frozen, validated fields; a name; declared needs."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    name: ClassVar[str] = ""
    stage: ClassVar[str] = ""
    needs: ClassVar[frozenset[AnySignal]] = frozenset()
    paper: ClassVar[str] = ""
    """Title, venue and arXiv id, for ``tokcomp show`` and the generated pages."""
    home: ClassVar[str] = ""
    """The dotted path that stands for the name in a configuration, of a strategy that no other process would know by its
    name; set when it is registered or looked up."""

    if not TYPE_CHECKING:  # type checkers take the fields as they are

        def __init__(self, **fields: Any) -> None:
            super().__init__(**current_fields(type(self).stage, type(self).name, fields))

        def __setattr__(self, name: str, value: Any) -> None:
            if not name.startswith("_"):  # private attributes are pydantic's business
                raise StateError(type(self).__name__, name)
            super().__setattr__(name, value)

    def signals(self) -> frozenset[AnySignal]:
        """What this very strategy reads: ``needs`` with what plug-in signals among them are made from, unless it wraps others
        and reads what they do."""
        return expanded(self.needs)

    def departures(self) -> dict[str, str]:
        """Rules of the contract that this very strategy departs from on purpose, by name, each with its reason; only those
        about budget and cost may be departed from."""
        return {}

    def spec(self) -> dict[str, object]:
        """The strategy as plain data, ``{"name": ..., fields...}``: what :class:`~tokcomp.Pipeline` takes back."""
        return {"name": self.home or self.name, **self.model_dump(mode="json")}


class VisionReducer(Strategy):
    """Shortens the image's tokens inside the vision tower or around its projector.

    Attributes:
        positions: ``renumber``: survivors stand side by side in the prompt and are numbered 0, 1, 2...;
            ``keep``: each survivor keeps the position id of the original token that it stands at.
    """

    stage: ClassVar[str] = "vision"
    protects: ClassVar[bool] = False
    """Whether the reducer marks key tokens."""
    without_cls: ClassVar[Literal["received", "refuse"]] = "refuse"
    """What a reducer that looks at the CLS token's attention does on a tower without CLS token: take the attention that
    each token receives from all of its image's tokens in its place, or refuse."""

    positions: Literal["keep", "renumber"] = Field(
        default="renumber", description="position ids of the survivors in the language model"
    )

    def sites(self, depth: int) -> tuple[Site, ...]:
        """Where the reducer acts in a tower of ``depth`` blocks, in the order of the flow; if not overridden once, on the
        feature layer before the projector."""
        return (Site.features(),)

    def looks_at(self, depth: int) -> tuple[int | None, ...]:
        """The tower blocks whose attention the reducer's signals are taken from; None: the block that the site belongs
        to. Other blocks are read with :meth:`VisionView.at`."""
        return (None,)

    @abstractmethod
    def reduce(self, view: VisionView) -> Selection:
        """Which tokens survive at ``view.site``."""

    def refuses_without_cls(self) -> bool:
        """Whether a tower without CLS token will not do."""
        looks = self.signals() & {Signal.CLS_ATTENTION, Signal.UNSPLIT_ATTENTION}
        return bool(looks) and self.without_cls == "refuse"

    def scope(self) -> Literal["row", "image", "prompt"]:
        """What a row of the view is: a row of the tower (an image, a tile or a frame), all rows of an image or video, or
        all that is encoded for one prompt."""
        return "row"

    def weighs_attention(self) -> bool:
        """Whether the tower's later blocks add log(size) to the attention logits of merged tokens (ToMe's
        proportional attention)."""
        return False


class PrefillFilter(Strategy):
    """Drops or merges vision tokens between the language model's layers while the prompt is processed.

    Attributes:
        positions: ``keep``: survivors keep their position ids; ``renumber``: the shortened sequence is numbered anew in
            every layer after the cut.
        respects_protected: key tokens that the vision stage marked are never dropped.
        budget_per: what the filter decides on by itself, and has a budget of its own: all vision tokens of a prompt, each image
            or video of it, or each row of the vision tower (an image, a tile of a large one, a frame of a video).
    """

    stage: ClassVar[str] = "prefill"
    queries: ClassVar[Literal["last", "text"] | None] = None
    """Whose attention rows the view holds: the last prompt token's, those of the text after the last image, or none."""
    attention_of: ClassVar[Literal["this", "next"]] = "this"
    """Which layer's attention the view holds: that of the layer that has just run, or that of the next one, from that
    layer's own projections of the states that it would get."""

    positions: Literal["keep", "renumber"] = Field(
        default="keep", description="position ids of the survivors in the layers after the cut"
    )
    respects_protected: bool = Field(default=True, description="never drop the vision stage's key tokens")
    budget_per: Literal["prompt", "image", "row"] = Field(
        default="prompt", description="what has a budget of its own: a prompt, an image or video, a tile or frame"
    )

    @abstractmethod
    def acts_after(self, depth: int) -> tuple[int, ...]:
        """The layers (of ``depth``) on whose output the filter acts, ascending."""

    @abstractmethod
    def filter(self, view: PrefillView) -> Selection:
        """Which of the vision tokens alive after ``view.layer`` go on."""

    def prepare(self, view: PrefillView) -> None:
        """Look at the prompt before its first layer and note in ``view.memory`` what :meth:`filter` will want: ``layer``
        is -1, the tokens are the embeddings, and there is no attention yet."""

    def prepares(self) -> bool:
        """Whether :meth:`prepare` is to be called."""
        return type(self).prepare is not PrefillFilter.prepare

    def of_layer(self, layer: int, depth: int) -> PrefillFilter:
        """The filter that acts after ``layer``: this one, unless it wraps others."""
        return self

    def guided_by(self) -> str | None:
        """The setting by which the filter goes by the text after the last image, or None; it then refuses prompts
        without such text."""
        return f"prefill={self.name}" if self.queries == "text" or Signal.TEXT in self.signals() else None


class CachePolicy(Strategy):
    """Shortens the key/value cache after the prefill and, if it wants to, after every decoding step.

    In a later turn with images :meth:`after_prefill` is called again: a policy that acts in decoding sees the whole cache and
    what it remembered, one that does not sees the entries that this turn's prompt has written, and the earlier ones stay.

    Attributes:
        positions: ``keep``: new tokens get their true position; ``renumber``: the position of a new token is the length
            of that layer's cache, cached keys stay as they are (MustDrop's published code); ``rerotate``: cached keys
            are rotated to their slot as well (StreamingLLM's paper).
        respects_protected: entries of key tokens that the vision stage marked never leave.
        keep_text: entries of text tokens never leave.
    """

    stage: ClassVar[str] = "cache"
    acts_in_decoding: ClassVar[bool] = False
    """Whether :meth:`after_step` is to be called."""
    layers_alike: ClassVar[bool] = False
    """Neither ``view.layer`` nor keys and values are read: the runner may ask about several layers as if they were samples."""
    remembers: ClassVar[bool] = False
    """Whether :meth:`after_step` has to be called at every step, since it sums up what it sees."""

    counts_tokens: ClassVar[bool] = False
    """Whether the rule goes by how many tokens came after the prompt, a number that the samples of a batch share."""

    positions: Literal["keep", "renumber", "rerotate"] = Field(
        default="keep", description="position of a new token: its true one, or the length of the layer's cache"
    )
    respects_protected: bool = Field(default=True, description="never evict the vision stage's key tokens")
    keep_text: bool = Field(default=False, description="never evict the entries of text tokens")

    def acts_on(self, depth: int) -> range:
        """The layers whose cache the policy shortens."""
        return range(depth)

    def decodes(self) -> bool:
        """Whether this very policy acts in decoding: ``acts_in_decoding``, unless it wraps others and does what they do."""
        return self.acts_in_decoding

    def of_layer(self, layer: int, depth: int) -> CachePolicy | None:
        """The policy that acts on a layer's cache: this one, or one of those that it holds; None: the layer is left alone."""
        return self if layer in self.acts_on(depth) else None

    def prefill_rows(self, counts: Tensor, after: Tensor) -> Tensor | None:
        """How many of the last prompt rows ``view.received`` sums after the prefill, at least 1 per sample ``[b]``; None:
        all of them.

        Args:
            counts: tokens of each sample in the layer ``[b]``.
            after: text tokens that follow its last image ``[b]``, all its tokens where it has none.
        """
        return None

    def hides(self) -> bool:
        """Whether what a selection leaves out stays in the cache and is only hidden from the next step (H2O's simulated
        evaluation), instead of leaving it."""
        return False

    def packs(self) -> bool:
        """Whether heads may keep different numbers of prompt entries, once and for all: they are then stored without padding,
        so that the memory is the sum of the heads' budgets. Not for policies that act in decoding."""
        return False

    def merges_keys(self) -> bool:
        """Whether a selection with ``assign`` merges keys as it merges values; if not, a slot keeps its own key."""
        return True

    def guided_by(self) -> str | None:
        """The setting by which the policy goes by the text after the last image, or None; it then refuses prompts with images
        and without such text."""
        return None

    def survey(self, view: CacheView) -> Tensor:
        """A number per sample ``[b]`` about a layer that has just run. With ``Signal.SURVEY`` the policy acts when all
        layers have run, and sees the numbers of all of them; what it puts into ``view.memory`` here is there then."""
        raise NotImplementedError(f"cache policy '{self.name}' needs {Signal.SURVEY!r} and does not define survey()")

    @abstractmethod
    def after_prefill(self, view: CacheView) -> Selection | None:
        """Which prompt entries stay, for all heads (``keep`` ``[b, k]``) or per head (``[b, g, k]``); None: all."""

    def after_step(self, view: CacheView) -> Selection | None:
        """Which entries stay after a decoding step whose own entry is the last one; None: all."""
        return None

    def exempt(self, view: CacheView) -> Tensor | None:
        """Entries that must stay by the policy's fields ``[b, g, l]`` bool, or None where there is no such rule."""
        marked = self.respects_protected and view.marked
        rules = ([view.protected] if marked else []) + ([~view.vision] if self.keep_text else [])
        return None if not rules else rules[0] if len(rules) == 1 else rules[0] | rules[1]
