"""Records what the commands of the tutorials print: `python docs/transcripts.py [NAME …]` writes docs/transcripts/NAME.txt.

The pages show these files, and the command of each stands in one of the pages; a test holds both.
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

DOCS = Path(__file__).resolve().parent
FOLDER = DOCS / "transcripts"
WIDTH = 92

COMMANDS = {
    "run": "tokcomp run vision=tome prefill=fastv cache=h2o benchmark.samples=40 measure.timing=false measure.memory=false "
    "hydra.run.dir=outputs/first",
    "flops": "tokcomp flops model=llava-1.5-7b vision=divprune vision.keep_tokens=128 cache=snapkv cache.keep_ratio=0.5",
    "sweep": "tokcomp sweep vision=tome,fastervlm,random prefill=none,fastv budget.equivalent_tokens=36 benchmark.samples=100 "
    "measure.timing=false measure.memory=false hydra.sweep.dir=sweeps/equal",
    "report": "tokcomp report sweeps/equal",
    "calibrate": "tokcomp calibrate prefill=mustdrop target.equivalent_tokens=64 --out configs/prefill/mustdrop-equal.yaml",
}
"""In this order and in one folder: a report is of the sweep before it."""

PICTURE = 'tokcomp view docs/images/scene.png "describe all the digits" preset=tome+fastv+h2o vision.r=12 --out scene-tokens.png'


def main() -> int:
    wanted = sys.argv[1:] or [*COMMANDS, "picture"]
    FOLDER.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory() as scratch:
        place = Path(scratch)
        (place / "docs" / "images").mkdir(parents=True)
        shutil.copy(DOCS / "images" / "scene.png", place / "docs" / "images")
        for name in wanted:
            if name == "picture":
                printed(PICTURE, place)
                _save_small(place / "scene-tokens.png", DOCS / "images" / "start.png")
            else:
                (FOLDER / f"{name}.txt").write_text(printed(COMMANDS[name], place), encoding="utf-8")
            sys.stderr.write(f"{name}\n")
    return 0


def printed(command: str, place: Path) -> str:
    """What a command prints in ``place``, without progress bars and without paths of this machine."""
    words = [sys.executable, "-m", *shlex.split(command)]
    environment = {**os.environ, "COLUMNS": str(WIDTH), "PYTHONPATH": str(DOCS.parent), "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(words, cwd=place, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{command}: {done.stderr}")
    text = re.sub(rf"(/private)?{re.escape(str(place))}/?", "", done.stdout)
    lines = [line.rstrip() for line in text.splitlines() if "━━" not in line or "┃" in line or line[:1] in "┏┡"]
    return "\n".join(lines).strip("\n") + "\n"


def _save_small(picture: Path, out: Path) -> None:
    from PIL import Image

    Image.open(picture).convert("RGB").quantize(128, dither=Image.Dither.NONE).save(out, optimize=True)


if __name__ == "__main__":
    sys.exit(main())
