"""Draws the diagrams of the site: `python docs/diagrams/draw.py` writes the SVG files beside it.

What is counted in `cost.svg` comes from `tokcomp flops`; everything else is a drawing.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE))

from canvas import Canvas  # noqa: E402, beside this file

TILE = 15.0
SKY, HOUSE, TREE = "sky", "house", "tree"


def _picture() -> list[list[str]]:
    """An 8 x 8 image of three regions: what makes patches alike."""
    rows = ["........", "........", "...##...", "..####..", ".######.", ".######t", ".######t", "tttttttt"]
    return [[{"#": HOUSE, "t": TREE}.get(mark, SKY) for mark in row] for row in rows]


def _tiles(drawn: Canvas, x: float, y: float, looks: Callable[[int, int, str], str], gap: float = 2) -> None:
    """The picture patch by patch."""
    for row, line in enumerate(_picture()):
        for column, region in enumerate(line):
            at = (x + column * (TILE + gap), y + row * (TILE + gap))
            drawn.box(*at, TILE, TILE, looks(row, column, region), rx=2 if gap > 0 else 0)


def tokens() -> Canvas:
    """From an image to the tokens of a prompt."""
    drawn = Canvas(790, 226, "An image is cut into patches, each becomes a vector, and all of them stand in the prompt")
    drawn.text(80, 22, "1  the image", "strong")
    _tiles(drawn, 19, 40, lambda row, column, region: f"patch {region}", gap=-0.4)
    drawn.arrow(148, 106, 182, 106)
    drawn.text(262, 22, "2  patches", "strong")
    _tiles(drawn, 196, 40, lambda row, column, region: f"patch {region}")
    drawn.arrow(340, 106, 374, 106)
    drawn.text(440, 22, "3  vision tower", "strong")
    drawn.box(384, 40, 112, 134, "box vision")
    for number, text in enumerate(("block 0", "block 1", "…", "block 23")):
        drawn.text(440, 66 + 24 * number, text, "small")
    drawn.text(440, 164, "projector", "small")
    drawn.arrow(502, 106, 536, 106)
    drawn.text(660, 22, "4  the prompt", "strong")
    for number in range(40):
        column, row = number % 10, number // 10
        drawn.box(548 + 23 * column, 40 + 26 * row, 19, 19, "cell kept")
    for number, word in enumerate(("what", "is", "in", "it", "?")):
        drawn.box(548 + 46 * number, 152, 42, 22, "cell txt")
        drawn.text(569 + 46 * number, 167, word, "celltext")
    drawn.text(395, 200, "LLaVA-1.5: 336 x 336 pixels, 24 x 24 patches of 14 x 14 pixels, 576 image tokens.", "small")
    drawn.text(395, 217, "A question is rarely longer than 50 tokens.", "small")
    return drawn


def redundancy() -> Canvas:
    """Dropping and merging."""
    drawn = Canvas(790, 226, "Alike patches can be dropped, or merged into one token")
    some = {(1, 2), (1, 6), (2, 3), (3, 2), (3, 5), (4, 1), (4, 4), (5, 3), (5, 7), (6, 5), (7, 1), (7, 6)}
    drawn.text(110, 22, "64 patches", "strong")
    _tiles(drawn, 43, 40, lambda row, column, region: f"patch {region}")
    drawn.text(110, 200, "many say the same", "small")
    drawn.arrow(200, 106, 244, 106)
    drawn.text(330, 22, "drop", "strong")
    _tiles(drawn, 263, 40, lambda row, column, region: f"patch {region}" if (row, column) in some else "patch gone")
    drawn.text(330, 200, f"{len(some)} stay as they are", "small")
    drawn.text(330, 217, "the rest is gone", "small")
    drawn.text(590, 22, "merge", "strong")
    groups = {SKY: (0, 0, 3), HOUSE: (3, 2, 2), TREE: (7, 0, 1)}
    _tiles(drawn, 458, 40, lambda row, column, region: f"patch {region} faded")
    for number, region in enumerate(groups):
        y = 54 + 44 * number
        drawn.arrow(602, y + 11, 640, y + 11)
        drawn.box(650, y, 22, 22, f"patch {region}", rx=3)
        count = sum(line.count(region) for line in _picture())
        drawn.text(682, y + 16, f"mean of {count}", "small", "start")
    drawn.text(590, 200, "groups become one token each, which", "small")
    drawn.text(590, 217, "remembers how many it stands for", "small")
    return drawn


def when() -> Canvas:
    """The stages in time: once per image, once per prompt, once per word."""
    drawn = Canvas(790, 250, "When each stage acts: encoding, prefill, decoding")
    y, height = 60, 62
    drawn.labelled(20, y, 150, height, "encode the image", "once", "vision")
    drawn.labelled(190, y, 230, height, "prefill: read the prompt", "all tokens at once, layer by layer", "prefill")
    for number, word in enumerate(("a", "red", "house", "…")):
        drawn.labelled(440 + 84 * number, y, 74, height, word, f"step {number + 1}" if number < 3 else "", "cache")
    drawn.text(605, 50, "decode: one token per step, each reads the whole cache", "small")
    drawn.arrow(20, 150, 772, 150)
    drawn.text(772, 170, "time", "small", "end")
    for x, width, look, text in (
        (20, 150, "vision", "fewer tokens here make\neverything after it cheaper;\nthe question is not known yet"),
        (190, 230, "prefill", "the question is known; layers before\nthe cut have paid in full already"),
        (440, 326, "cache", "the prefill is paid; what is saved is memory\nand the time of every step to come"),
    ):
        drawn.bracket(x, x + width, 132, look)
        drawn.text(x + width / 2, 196, text, "small")
    drawn.text(95, 30, "vision", "strong vision-ink")
    drawn.text(305, 30, "prefill", "strong prefill-ink")
    drawn.text(605, 30, "cache", "strong cache-ink")
    return drawn


def sites() -> Canvas:
    """Where in the tower a reducer may act."""
    drawn = Canvas(790, 210, "The four sites of a vision reducer")
    drawn.box(20, 46, 330, 92, "box vision")
    drawn.text(185, 36, "block l of the tower", "strong")
    drawn.labelled(40, 66, 110, 52, "attention")
    drawn.labelled(214, 66, 110, 52, "MLP")
    drawn.arrow(150, 92, 212, 92)
    drawn.arrow(350, 92, 398, 92)
    drawn.labelled(400, 66, 130, 52, "features", "a chosen layer", "vision")
    drawn.arrow(530, 92, 578, 92)
    drawn.labelled(580, 66, 100, 52, "projector", "", "vision")
    drawn.arrow(680, 92, 748, 92)
    drawn.text(752, 97, "LM", "strong", "start")
    for x, name, who in (
        (181, "mid(l)", "ToMe, PiToMe"),
        (366, "block(l)", "MustDrop, EViT"),
        (545, "features", "FasterVLM, VisionZip"),
        (714, "projected", "DivPrune"),
    ):
        drawn.path(f"M{x} 98V156", "cut vision-cut")
        drawn.text(x, 174, name, "code vision-ink")
        drawn.text(x, 192, who, "small")
    return drawn


def positions() -> Canvas:
    """What becomes of position numbers."""
    drawn = Canvas(790, 232, "Keeping position numbers, and numbering anew")
    kept = (1, 4, 5, 9)
    rows = (
        ("before", [(n, str(n), True) for n in range(12)]),
        ("keep", [(n, str(n), n in kept or n > 9) for n in range(12)]),
    )
    for line, (name, cells) in enumerate(rows):
        y = 36 + 62 * line
        drawn.text(96, y + 20, name, "strong" if line == 0 else "code", "end")
        for at, label, there in cells:
            look = "cell gone" if not there else "cell txt" if at > 9 else "cell kept"
            drawn.box(112 + 54 * at, y, 48, 30, look)
            if there:
                drawn.text(136 + 54 * at, y + 20, label, "celltext")
    drawn.text(112, 26, "ten image tokens, then two of the question; four image tokens are kept", "small", "start")
    drawn.text(
        112,
        88,
        "survivors keep their numbers, and with them their distances: where they were can be told",
        "small",
        "start",
    )
    drawn.text(96, 180, "renumber", "code", "end")
    for number in range(6):
        drawn.box(112 + 54 * number, 160, 48, 30, "cell kept" if number < 4 else "cell txt")
        drawn.text(136 + 54 * number, 180, str(number), "celltext")
    drawn.text(
        112,
        150,
        "survivors stand side by side, as in a shorter prompt: compact, but the gaps are forgotten",
        "small",
        "start",
    )
    drawn.text(
        112,
        214,
        "The numbers turn the keys and queries (rotary positions); they are no places in memory.",
        "small",
        "start",
    )
    return drawn


def equivalent() -> Canvas:
    """Equivalent tokens: the mean over the layers."""
    drawn = Canvas(790, 250, "Equivalent tokens are the mean over the layers of the tokens that enter")
    left, bottom, step = 70, 200, 40
    counts = (144, 144, 144, 72, 72, 72, 72, 72)
    for layer, count in enumerate(counts):
        drawn.box(left + step * layer, bottom - count, step - 6, count, "bar prefill", rx=2)
        drawn.box(left + 360 + step * layer, bottom - 99, step - 6, 99, "bar vision", rx=2)
        for x in (left, left + 360):
            drawn.text(x + step * layer + 17, bottom + 17, str(layer), "small")
    drawn.text(left - 8, bottom - 140, "144", "small", "end")
    drawn.text(left - 8, bottom - 68, "72", "small", "end")
    drawn.text(left + 352, bottom - 95, "99", "small", "end")
    mean = sum(counts) / len(counts)
    drawn.path(f"M{left - 4} {bottom - mean:g}H{left + 8 * step}", "cut")
    drawn.text(left + 8 * step - 6, bottom - mean - 6, f"mean {mean:g}", "small", "end")
    drawn.text(left + 157, 24, "a filter that halves after layer 2", "strong")
    drawn.text(left + 517, 24, "a reducer that keeps 99 of 144", "strong")
    drawn.text(
        left + 330,
        bottom + 40,
        "layers of the language model; both cost it about the same: 99 equivalent tokens",
        "small",
    )
    return drawn


def cost() -> Canvas:
    """Where the FLOPs of LLaVA-1.5-7B go, as `tokcomp flops` counts them."""
    from tokcomp.experiment.compose import compose
    from tokcomp.experiment.prediction import PredictionConfig, predict

    choices = ("preset=none", "preset=tome", "preset=fastv", "preset=mustdrop-64")
    parts = (("tower", "vision"), ("prefill", "prefill"))
    sides = []
    for choice in choices:
        prediction = predict(PredictionConfig.resolve(compose([choice, "model=llava-1.5-7b"], config_name="flops")))
        sides.append((choice, prediction.compressed.by_part()))
    drawn = Canvas(790, 60 + 44 * len(sides), "FLOPs of reading one prompt, by part, on LLaVA-1.5-7B")
    most = max(side["total"] for _, side in sides)
    for number, (choice, side) in enumerate(sides):
        y, x = 30 + 44 * number, 170.0
        drawn.text(158, y + 20, "dense" if choice == "preset=none" else choice, "code", "end")
        rest = side["total"] - sum(side[part] for part, _ in parts)
        for count, look in (*((side[part], look) for part, look in parts), (rest, "rest")):
            width = 500 * count / most
            drawn.box(x, y, width, 28, f"bar {look}", rx=1)
            x += width
        drawn.text(x + 8, y + 19, f"{side['total'] / 1e12:.2f} TFLOPs", "small", "start")
    y = 36 + 44 * len(sides)
    for x, look, text in (
        (170, "vision", "vision tower"),
        (300, "prefill", "language model, prefill"),
        (500, "rest", "projector and head"),
    ):
        drawn.box(x, y, 13, 13, f"bar {look}", rx=2)
        drawn.text(x + 20, y + 11, text, "small", "start")
    return drawn


DRAWINGS: dict[str, Callable[[], Canvas]] = {
    "tokens": tokens, "redundancy": redundancy, "when": when, "sites": sites, "positions": positions,
    "equivalent": equivalent, "cost": cost,
}  # fmt: skip


def main() -> None:
    for name, draw in DRAWINGS.items():
        draw().write(HERE / f"{name}.svg")


if __name__ == "__main__":
    main()
