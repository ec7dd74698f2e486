"""Where a call makes the host wait for the GPU."""

from __future__ import annotations

import os
import warnings
from collections import Counter
from collections.abc import Callable
from typing import Any

import torch

__all__ = ["waits"]


def waits(call: Callable[[], Any]) -> dict[str, int]:
    """Each place in Python code at which ``call()`` waits, and how often; the call runs twice."""
    call()
    torch.cuda.synchronize()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        try:
            call()
        finally:
            torch.cuda.set_sync_debug_mode("default")
    found = [warning for warning in caught if "synchroniz" in str(warning.message)]
    return dict(Counter(f"{os.path.join(*warning.filename.split(os.sep)[-2:])}:{warning.lineno}" for warning in found))
