"""Filters that merge, wrap others or look ahead, in a model: against a run by hand, in batches, and in the trace."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.tiny_models import IMAGE, batch, generate, llava, pixels, prompt
from tokcomp import Pipeline, Selection
from tokcomp.errors import CompatibilityError, ConfigurationError
from tokcomp.stages import PrefillFilter

SPARSE = {"name": "sparsevlm", "layers": (1, 4), "keep_tokens": (14, 5)}
RANKED = {"name": "sparsevlm", "layers": (0, 2, 5), "scale": 2.0, "bias": 3.0, "recycle": 0.6}
PYRAMID = {"name": "pyramiddrop", "layers": (2, 4, 6)}
DART = {"name": "dart", "layer": 2, "keep_tokens": 12}
LAST = {"name": "sparsevlm", "layers": (4,), "keep_tokens": (6,)}
MIXED = {"name": "schedule", "steps": [{"name": "dart", "keep_tokens": 20}, LAST]}
FILTERS = {"sparsevlm": SPARSE, "sparsevlm by rank": RANKED, "sparsevlm, positions kept": {**SPARSE, "positions": "keep"},
           "pyramiddrop": PYRAMID, "dart": DART, "schedule": MIXED, "uniform": {"name": "uniform", "keep_tokens": 7}}  # fmt: skip


@contextmanager
def noted(pipeline: Pipeline) -> Iterator[dict[int, Selection]]:
    """What the pipeline's filters select, by layer."""
    found: dict[int, Selection] = {}
    assert pipeline.prefill is not None
    kinds = {type(pipeline.prefill.of_layer(layer, 8)) for layer in pipeline.prefill.acts_after(8)}
    with pytest.MonkeyPatch.context() as patch:
        for kind in kinds:
            original = kind.filter

            def filter(self: PrefillFilter, view: Any, original: Any = original) -> Selection:
                return found.setdefault(view.layer, original(self, view))

            patch.setattr(kind, "filter", filter)
        yield found


def by_hand(model: Any, ids: Tensor, image: Tensor, selections: dict[int, Selection], pipeline: Pipeline) -> Tensor:
    """Last hidden states ``[l, d]`` of one sample: every selection applied token by token between two layers."""
    body, decoder = model.model, model.model.language_model
    features = torch.cat(body.get_image_features(pixel_values=image, return_dict=True).pooler_output)
    hidden = body.get_input_embeddings()(ids).masked_scatter((ids == IMAGE)[..., None], features)[0]
    vision = [int(token) == IMAGE for token in ids[0]]
    position = list(range(len(vision)))
    for number, layer in enumerate(decoder.layers):
        causal = torch.ones(len(position), len(position), dtype=torch.bool).tril()
        rotary = decoder.rotary_emb(hidden[None], position_ids=torch.tensor([position]))
        hidden = layer(hidden[None], attention_mask=causal[None, None], position_embeddings=rotary)[0]
        if number in selections:
            selection = selections[number]
            columns = [i for i, is_vision in enumerate(vision) if is_vision]
            start, text = columns[0], hidden[[i for i, is_vision in enumerate(vision) if not is_vision]]
            states, places = [], []
            for slot, token in enumerate(selection.keep[0].tolist()):
                members = [token]
                if selection.assign is not None:
                    members = [i for i, home in enumerate(selection.assign[0].tolist()) if home == slot]
                states.append(torch.stack([hidden[columns[i]] for i in members]).mean(0))
                places.append(position[columns[token]])
            rest = [p for p, is_vision in zip(position, vision, strict=True) if not is_vision]
            hidden = torch.cat([text[:start], torch.stack(states), text[start:]])
            vision = [False] * start + [True] * len(states) + [False] * (len(rest) - start)
            position = rest[:start] + places + rest[start:]
            assert pipeline.prefill is not None
            if pipeline.prefill.of_layer(number, 8).positions == "renumber":
                position = list(range(len(position)))
    return decoder.norm(hidden)


@pytest.mark.parametrize("name", FILTERS)
@torch.no_grad()
def test_equals_a_run_by_hand(name: str) -> None:
    model, pipeline = llava(sharp=2.0), Pipeline(prefill=FILTERS[name])
    ids, image = prompt(36, 4, 6), pixels()
    last: list[Tensor] = []
    with noted(pipeline) as selections, pipeline.attach(model):
        handle = model.model.language_model.norm.register_forward_hook(lambda m, a, out: last.append(out))
        model(input_ids=ids, pixel_values=image)
        handle.remove()
    assert sorted(selections) == list(pipeline.prefill.acts_after(8))
    torch.testing.assert_close(last[-1][0], by_hand(model, ids, image, selections, pipeline), atol=2e-4, rtol=0)


@pytest.mark.parametrize("name", FILTERS)
@pytest.mark.parametrize("vision", [None, {"name": "mustdrop", "window": 2, "merge_layer": 2}], ids=["", "mustdrop"])
@torch.no_grad()
def test_a_batch_gives_what_its_samples_give(name: str, vision: Any) -> None:
    model, pipeline = (
        llava(sharp=2.0),
        Pipeline(vision, FILTERS[name], {"name": "h2o", "heavy_tokens": 8, "recent_tokens": 4}),
    )
    rows, images = [prompt(36, 4, 6), prompt(36, 2, 3, seed=1), prompt(36, 5, 9, seed=2)], pixels(3)
    with pipeline.attach(model) as trace:
        whole = generate(model, 4, **batch(*rows), pixel_values=images)
        record = trace.last
        for i, row in enumerate(rows):
            one = generate(model, 4, input_ids=row, pixel_values=images[i : i + 1])
            assert whole.sequences[i, -4:].tolist() == one.sequences[0, -4:].tolist()
            torch.testing.assert_close(whole.logits[0][i], one.logits[0][0], atol=2e-4, rtol=0)
            alone = trace.last
            assert [layer[i].tolist() for layer in record.kept] == [layer[0].tolist() for layer in alone.kept]
            assert record.fate[i] == alone.fate[0]


@torch.no_grad()
def test_the_trace_tells_what_was_merged_into_what() -> None:
    model, pipeline = llava(sharp=2.0), Pipeline(prefill=SPARSE)
    with noted(pipeline) as selections, pipeline.attach(model) as trace:
        generate(model, 2, input_ids=prompt(36, 4, 6), pixel_values=pixels())
    record, depth = trace.last, 8
    slots = {layer: selection.keep.shape[1] for layer, selection in selections.items()}
    assert [int(count) for count in record.vision_tokens] == [36, 36] + [slots[1]] * 3 + [slots[4]] * (depth - 5)
    assert slots[1] > 14
    where = list(range(36))  # of every patch, followed through both selections
    for layer in (1, 4):
        before = record.kept[layer][0].tolist()
        for patch, stands in enumerate(where):
            slot = int(selections[layer].assign[0, before.index(stands)]) if stands >= 0 else -1
            where[patch] = before[int(selections[layer].keep[0, slot])] if slot >= 0 else -1
    for patch, (fate, stands) in enumerate(zip(record.fate[0], where, strict=True)):
        assert fate.kind == ("dropped" if stands < 0 else "kept" if stands == patch else "merged")
        assert stands < 0 or fate.into == stands
    assert any(fate.kind == "merged" for fate in record.fate[0])
    assert "merged" in record.summary()
    lengths = [int(length) for length in record.cache_lengths]
    assert lengths == [int(tokens) + 10 + 1 for tokens in record.vision_tokens]


@torch.no_grad()
def test_the_next_layers_attention_is_what_that_layer_computes() -> None:
    """PyramidDrop with every token kept shows the attention that the next layer then has."""
    model = llava(sharp=2.0)
    seen: dict[str, Tensor] = {}
    pipeline = Pipeline(prefill={"name": "pyramiddrop", "layers": (3,), "keep_ratios": (1.0,)})
    kind = type(pipeline.prefill)
    original = kind.filter
    with pytest.MonkeyPatch.context() as patch, pipeline.attach(model):
        patch.setattr(kind, "filter", lambda self, view: (seen.update(ahead=view.attention), original(self, view))[1])
        model(input_ids=prompt(36, 4, 6), pixel_values=pixels())
    eager = llava(sharp=2.0, attention="eager")
    out = eager(input_ids=prompt(36, 4, 6), pixel_values=pixels(), output_attentions=True)
    torch.testing.assert_close(seen["ahead"], out.attentions[3][:, :, -1:, 4:40], atol=1e-5, rtol=0)


@pytest.mark.parametrize(("filter", "field"), [(SPARSE, "prefill=sparsevlm"), (DART, "prefill.dart.text_pivots=4"),
                                               (MIXED, r"prefill.schedule.steps\[0\]: prefill.dart.text_pivots")])  # fmt: skip
def test_no_text_is_refused_by_the_name_of_the_field(filter: Any, field: str) -> None:
    model = llava()
    with Pipeline(prefill=filter).attach(model), pytest.raises(CompatibilityError, match=f"{field}.* put text after"):
        model(input_ids=prompt(36, 4, 0), pixel_values=pixels())
    with Pipeline(prefill={**DART, "text_pivots": 0}).attach(model):
        model(input_ids=prompt(36, 4, 0), pixel_values=pixels())


def test_two_steps_at_one_layer_are_refused() -> None:
    same = {"name": "schedule", "steps": ["fastv", "dart"]}
    session = Pipeline(prefill=same).attach(llava())
    with pytest.raises(CompatibilityError, match=r"steps\[1\] \('dart'\) acts after layer 1 .* where 'fastv' acts"):
        session.__enter__()
    with pytest.raises(ConfigurationError, match=r"steps\[0\]: prefill.fastv.keep_ratio=3"):
        Pipeline(prefill={"name": "schedule", "steps": [{"name": "fastv", "keep_ratio": 3}]})


def test_a_schedule_hands_its_fields_to_its_steps() -> None:
    schedule = Pipeline(prefill={**MIXED, "positions": "renumber", "respects_protected": False}).prefill
    assert [step.positions for step in schedule.steps] == ["renumber", "renumber"]
    assert not any(step.respects_protected for step in schedule.steps)
    assert Pipeline(prefill=schedule.spec()).prefill == schedule
