"""A picture of one image: what each stage kept, merged and dropped, and the answers of the dense and the compressed model.
With no strategy given this is preset=mustdrop.

  tokcomp view photo.jpg "what is in the photo ?"
  tokcomp view photo.jpg "how many digits ?" preset=tome+fastv+h2o --out tokens.png"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from tokcomp.cli.output import refuse_unwritable
from tokcomp.errors import ConfigurationError

if TYPE_CHECKING:
    from PIL import Image

__all__ = ["MAX_PIXELS", "add_arguments", "execute", "open_image"]

MAX_PIXELS = 50_000_000
"""Larger images are refused: no model looks at so many pixels, and decoding them would fill the memory."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("image", type=Path, metavar="IMAGE", help="an image file")
    parser.add_argument("question", help="what to ask about it")
    parser.add_argument("overrides", nargs="*", default=[], metavar="name=value",
                        help="model, strategies and settings, as for `tokcomp run`")  # fmt: skip
    parser.add_argument("--out", type=Path, default=None, help="the PNG to write (default: IMAGE-tokens.png here)")


def execute(options: argparse.Namespace) -> int:
    image = open_image(options.image)
    if not options.question.strip():
        raise ConfigurationError("the question is empty: ask something about the image")
    out = options.out or Path(f"{options.image.stem}-tokens.png")
    if out.suffix and out.suffix.lower() != ".png":
        raise ConfigurationError(
            f"--out {out}: the picture is a PNG, expected a name such as {out.with_suffix('.png').name}"
        )
    refuse_unwritable(out)

    from transformers.utils import logging

    from tokcomp.experiment.budgets import meet
    from tokcomp.experiment.compose import compose
    from tokcomp.experiment.config import RunConfig
    from tokcomp.experiment.load import load_model
    from tokcomp.report.view import render

    logging.disable_progress_bar()
    config = RunConfig.resolve(compose([*_default(options.overrides), *options.overrides]))
    loaded = load_model(config.model, device=config.device, dtype=config.torch_dtype)
    met = meet(config, loaded)
    pipeline = (config if met is None else met.config).pipeline
    told = render(image, options.question, pipeline.spec(), loaded, out)
    for name, value in told.items():
        print(f"{name}: {value}")
    print(f"written to {out}")
    return 0


def _default(overrides: Sequence[str]) -> list[str]:
    """MustDrop, unless the line itself says what acts."""
    choices = ("vision=", "prefill=", "cache=", "preset=", "experiment=")
    return [] if any(override.startswith(choices) for override in overrides) else ["preset=mustdrop"]


def open_image(path: Path) -> Image.Image:
    """The image in RGB.

    Raises:
        ConfigurationError: it is not there, no image, damaged, or larger than :data:`MAX_PIXELS`.
    """
    from PIL import Image, ImageOps, UnidentifiedImageError

    limit, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None  # the size is judged here, before anything is decoded
    try:
        if not path.is_file():
            raise ConfigurationError(f"{path} is no file")
        with Image.open(path) as image:
            width, height = image.size
            if width * height > MAX_PIXELS:
                raise ConfigurationError(
                    f"{path} has {width} x {height} pixels: at most {MAX_PIXELS // 1_000_000} million are taken, so scale it down"
                )
            return ImageOps.exif_transpose(image).convert("RGB")
    except UnidentifiedImageError:
        raise ConfigurationError(f"{path} is no image that can be read") from None
    except (OSError, SyntaxError, ValueError, EOFError) as error:  # what Pillow's decoders raise on damaged files
        raise ConfigurationError(f"{path} cannot be read: {' '.join(str(error).split())}") from error
    finally:
        Image.MAX_IMAGE_PIXELS = limit
