"""Photos bundled in the scikit-learn and scikit-image wheels, split into disjoint regions."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from io import BytesIO

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from tokcomp.embedded.glyphs import Split
from tokcomp.embedded.sources import photo_file

SHORT_SIDES = (300, 340, 380, 420)
"""Every photo is offered at these sizes of its shorter side."""

_TRAIN_SHARE = 0.67  # of the width, from the left


@dataclass(frozen=True)
class Photo:
    """One background photo: its word in answers, where it lies, and under which terms."""

    name: str
    package: str
    file: str
    licence: str
    source: str


_CC_BY = "CC BY 2.0"
_CC0 = "CC0 1.0"

PHOTOS = (
    Photo("temple", "sklearn.datasets", "images/china.jpg", _CC_BY, "danielbuechele, flickr.com 6061409035"),
    Photo("flower", "sklearn.datasets", "images/flower.jpg", _CC_BY, "vultilion, flickr.com 6056698931"),
    Photo("cat", "skimage", "data/chelsea.png", _CC0, "Stefan van der Walt"),
    Photo("rocket", "skimage", "data/rocket.jpg", "public domain", "SpaceX"),
    Photo("stars", "skimage", "data/hubble_deep_field.jpg", "public domain", "NASA, Hubble eXtreme Deep Field"),
    Photo("brick", "skimage", "data/brick.png", _CC0, "CC0Textures, Bricks25"),
    Photo("grass", "skimage", "data/grass.png", _CC0, "see skimage.data.grass"),
    Photo("retina", "skimage", "data/retina.jpg", _CC0, "see skimage.data.retina"),
)  # fmt: skip
"""The order fixes the photo index of scenes."""


def train_columns(width: int) -> int:
    """Columns ``[0, n)`` of a photo ``width`` wide belong to train, the rest to test."""
    return int(width * _TRAIN_SHARE)


@cache
def photo_region(index: int, size: int, split: Split) -> NDArray[np.uint8]:
    """Pixels ``(h, w, 3)`` of one photo that ``split`` may use, at ``SHORT_SIDES[size]``."""
    photo = PHOTOS[index]
    image = Image.open(BytesIO(photo_file(photo.package, photo.file))).convert("RGB")
    # Cut at full size, before resizing, so that no filter mixes the two regions.
    cut = train_columns(image.width)
    box = (0, 0, cut, image.height) if split == "train" else (cut, 0, image.width, image.height)
    factor = SHORT_SIDES[size] / min(image.size)
    region = image.crop(box)
    new_size = (round(region.width * factor), round(region.height * factor))
    pixels = np.asarray(region.resize(new_size, Image.Resampling.BICUBIC))
    pixels.flags.writeable = False
    return pixels
