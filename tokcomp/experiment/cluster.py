"""Whether a Ray cluster answers. Ray itself waits for one that does not, for minutes and in the end without a word."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from typing import Any

from tokcomp.errors import ConfigurationError

__all__ = ["PATIENCE", "address_of", "refuse_silent"]

PATIENCE = 30.0
"""Seconds within which a cluster answers."""

_CONNECT = "import json, sys, ray; ray.init(**json.loads(sys.argv[1]), log_to_driver=False)"


def address_of(init: Mapping[str, Any]) -> str | None:
    """The cluster that ``ray.init`` would connect to, given these arguments; None: it starts one on this machine."""
    address = init.get("address") or os.environ.get("RAY_ADDRESS")
    return None if address in (None, "local") else str(address)


def refuse_silent(address: str, init: Mapping[str, Any], patience: float = PATIENCE) -> None:
    """Connect to a cluster once, in a process that can be ended.

    Args:
        address: of the cluster.
        init: what else ``ray.init`` is given.
        patience: seconds to wait.

    Raises:
        ConfigurationError: it does not answer within that time, or refuses.
    """
    command = [sys.executable, "-c", _CONNECT, json.dumps({**init, "address": address})]
    hint = "start it (`ray start --head`), or give another hydra.launcher.ray.init.address"
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=patience, check=False)
    except subprocess.TimeoutExpired:
        raise ConfigurationError(
            f"the Ray cluster at {address} does not answer within {patience:g} seconds: {hint}"
        ) from None
    if done.returncode:
        if "InvalidAuthToken" in done.stderr:
            hint = "set RAY_AUTH_TOKEN to the cluster's token"
        reason = (done.stderr.strip().splitlines() or ["no reason given"])[-1]
        raise ConfigurationError(f"the Ray cluster at {address} cannot be used: {reason}: {hint}")
