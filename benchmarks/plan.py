"""A benchmark as a list of steps, the most important first, run until its time is used up."""

from __future__ import annotations

import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass

from benchmarks.records import Log

__all__ = ["Plan"]


@dataclass
class Plan:
    """Steps in order; each names the seconds that it takes at most, and is left out where they are no longer there.

    A step that fails is recorded with its error and the next one runs; :meth:`run` then says so.
    """

    log: Log
    seconds: float
    only: str = ""

    def __post_init__(self) -> None:
        self.start, self.failed = time.monotonic(), 0

    def step(self, name: str, seconds: float, call: Callable[[], object]) -> None:
        """Run one step now, if it fits."""
        if self.only and self.only not in name and not name.startswith("build"):
            return
        left = self.seconds - (time.monotonic() - self.start)
        if left < seconds:
            self.log.content["left_out"].append(name)
            self.log.write()
            print(f"-- left out: {name} ({left:.0f} s left)", flush=True)
            return
        begin = time.monotonic()
        try:
            call()
        except Exception as error:  # what was measured before stays; the exit status tells
            self.failed += 1
            # The record is committed: it names the error, and the terminal shows where, in this machine's paths.
            self.log.add(kind="error", step=name, error=f"{type(error).__name__}: {error}")
            traceback.print_exc()
        print(
            f"-- {name}: {time.monotonic() - begin:.1f} s, {self.seconds - (time.monotonic() - self.start):.0f} s left",
            flush=True,
        )
