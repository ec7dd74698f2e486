"""Control: average pooling of the patch grid."""

from __future__ import annotations

from pydantic import Field

from tokcomp.ops.pooling import average_pool
from tokcomp.registry import VISION
from tokcomp.stages import VisionReducer
from tokcomp.types import Selection, Site, VisionView

__all__ = ["Pool"]


@VISION.register("pool")
class Pool(VisionReducer):
    """Averages blocks of ``window`` x ``window`` patches: the control for methods that merge.

    Acts on the feature layer, before the projector. Blocks stand in image order; blocks at the right and lower edge
    average what they have, so 576 patches become 144 with a window of 2 and 64 with one of 3.

    Attributes:
        window: side of a block in patches; 1 changes nothing.
    """

    window: int = Field(default=2, ge=1, description="side of a block in patches")

    def sites(self, depth: int) -> tuple[Site, ...]:
        return (Site.features(),)

    def reduce(self, view: VisionView) -> Selection:
        return average_pool(view.grid, (self.window, self.window), view.origin, view.valid)
