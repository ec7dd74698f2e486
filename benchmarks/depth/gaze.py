"""How much of each layer's attention lies on vision tokens, by who asks."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from tokcomp.embedded.hard.dataset import hard_question_set
from tokcomp.experiment.config import ModelConfig
from tokcomp.experiment.load import load_model

SAMPLES = 48
ROWS = ("question", "last prompt token", "answer")


@torch.inference_mode()
def gaze(device: str) -> dict[str, Any]:
    """Per layer and kind of row, the mean share of attention on vision tokens, and the share of that on glyphs."""
    model = load_model(ModelConfig(name="tiny-hard", attention="eager"), device=device, dtype=torch.float32)
    sums = torch.zeros(len(ROWS), model.model.config.text_config.num_hidden_layers, 2)
    for item in hard_question_set(SAMPLES):
        inputs = model.inputs([item.question], [(item.image,)])
        prompt = inputs["input_ids"].shape[1]
        ids = torch.cat([inputs["input_ids"], model.generate(inputs, 32)], 1)
        whole = {**inputs, "input_ids": ids, "attention_mask": torch.ones_like(ids)}
        attentions = model.model(**whole, output_attentions=True).attentions
        vision = ids[0] == model.model.config.image_token_id
        after = int(vision.nonzero().max()) + 1
        glyph = torch.zeros_like(vision)
        glyph[vision] = torch.tensor(item.owner, device=vision.device) >= 0
        rows = (slice(after, prompt - 1), slice(prompt - 1, prompt), slice(prompt, None))
        sums += torch.stack([_shares(attentions, row, vision, glyph) for row in rows])
    means = (sums / SAMPLES).tolist()
    return {
        "samples": SAMPLES,
        "rows": {
            name: [{"vision": round(v, 4), "glyph_share": round(g, 4)} for v, g in layers]
            for name, layers in zip(ROWS, means, strict=True)
        },
    }


def _shares(attentions: tuple[Tensor, ...], rows: slice, vision: Tensor, glyph: Tensor) -> Tensor:
    """(layers, 2): mass on vision tokens, and the part of it that lies on glyphs."""
    mass = [attention[0, :, rows].mean((0, 1)) for attention in attentions]  # (t,) each
    return torch.tensor([[float(m[vision].sum()), float(m[glyph].sum() / m[vision].sum())] for m in mass])
