"""Checkpoints that are written whole or not at all, and refused by name when unfit."""

from __future__ import annotations

import hashlib
import io
import os
from pathlib import Path
from typing import Any

import torch

_MAGIC = b"tokcomp-embedded-checkpoint-1\n"
_DIGEST_BYTES = hashlib.sha256().digest_size


class CheckpointError(ValueError):
    """A checkpoint that is damaged, foreign, or belongs to another run."""


def save_checkpoint(path: Path, content: dict[str, Any]) -> None:
    """Write ``content`` (tensors and plain values) so that a crash leaves the old file intact."""
    buffer = io.BytesIO()
    torch.save(content, buffer)
    body = buffer.getvalue()
    temporary = path.with_name(path.name + ".part")
    with temporary.open("wb") as file:
        file.write(_MAGIC + hashlib.sha256(body).digest() + body)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)


def load_checkpoint(path: Path) -> dict[str, Any]:
    """Read what `save_checkpoint` wrote.

    Raises:
        CheckpointError: the file is not such a checkpoint, or its bytes changed since.
    """
    data = path.read_bytes()
    if not data.startswith(_MAGIC):
        raise CheckpointError(f"{path} is not a checkpoint of this program; delete it or give another --out")
    digest, body = data[len(_MAGIC) :][:_DIGEST_BYTES], data[len(_MAGIC) + _DIGEST_BYTES :]
    if hashlib.sha256(body).digest() != digest:
        raise CheckpointError(f"{path} is damaged (its checksum differs); delete it to start this stage anew")
    content: dict[str, Any] = torch.load(io.BytesIO(body), weights_only=True, map_location="cpu")
    return content


def load_for_run(path: Path, run: dict[str, Any]) -> dict[str, Any]:
    """`load_checkpoint`, and refuse one whose ``run`` settings differ from ``run``."""
    content = load_checkpoint(path)
    found = content["run"]
    different = sorted(key for key in run.keys() | found.keys() if run.get(key) != found.get(key))
    if different:
        listed = ", ".join(f"{key} {found.get(key)!r} instead of {run.get(key)!r}" for key in different)
        raise CheckpointError(f"{path} belongs to another run ({listed}); give another --out or delete it")
    return content
