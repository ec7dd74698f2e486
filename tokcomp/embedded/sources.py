"""Where digits and photos come from: the wheels of scikit-learn and scikit-image, or a file exported from them.

A machine without the two packages trains from such a file, named by the environment variable
``TOKCOMP_EMBEDDED_SOURCES``; ``python -m tokcomp.embedded.sources FILE`` writes it. It holds the same bytes under the
same licences (see `tokcomp.embedded.photos`).
"""

from __future__ import annotations

import importlib.util
import os
import sys
from functools import lru_cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

VARIABLE = "TOKCOMP_EMBEDDED_SOURCES"


@lru_cache(maxsize=1)
def _exported() -> dict[str, NDArray[np.uint8]] | None:
    name = os.environ.get(VARIABLE)
    if not name:
        return None
    with np.load(name, allow_pickle=False) as file:
        return {key: file[key] for key in file.files}


def digits() -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Digits (n, 8, 8) from 0 to 16 and their labels (n,)."""
    exported = _exported()
    if exported is not None:
        return exported["digits"], exported["labels"]
    from sklearn.datasets import load_digits

    bunch = load_digits()
    return bunch.images.astype(np.uint8), bunch.target.astype(np.uint8)


def photo_file(package: str, file: str) -> bytes:
    """The encoded photo that ``package`` bundles as ``file``."""
    exported = _exported()
    if exported is not None:
        return exported[f"{package}/{file}"].tobytes()
    # The wheel's own file is opened, because skimage.data would download what it does not find.
    spec = importlib.util.find_spec(package)
    if spec is None or spec.origin is None:
        raise ModuleNotFoundError(f"{package} is needed for the photo {file!r}", name=package)
    return (Path(spec.origin).parent / file).read_bytes()


def export(path: Path) -> None:
    """Write all that `digits` and `photo_file` give."""
    from tokcomp.embedded.photos import PHOTOS

    images, labels = digits()
    files = {f"{p.package}/{p.file}": np.frombuffer(photo_file(p.package, p.file), np.uint8) for p in PHOTOS}
    np.savez(path, digits=images, labels=labels, **files)  # type: ignore[arg-type]


if __name__ == "__main__":
    export(Path(sys.argv[1]))
