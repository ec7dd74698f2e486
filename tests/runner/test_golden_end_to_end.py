"""End-to-end parity with the published code: kept tokens, lengths and ids exactly, logits within 1e-3.

Sources of the vectors: see tests/golden/NOTES.md. Every folder of a known layout is a set of cases.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import CLIPVisionModel, LlamaForCausalLM, LlavaForConditionalGeneration

from tests.golden_cases import SHIPPED, folders, group, meta, tensors
from tests.tiny_models import generate
from tokcomp import Pipeline
from tokcomp.models.adapter import Adapter
from tokcomp.models.towers import clip_tower
from tokcomp.runner.arguments import cache_in
from tokcomp.runner.encoded import Encoded
from tokcomp.runner.hooks import Hooks
from tokcomp.runner.images import Images
from tokcomp.runner.tower import VisionStage
from tokcomp.vision.tome import ToMe

pytestmark = pytest.mark.golden

LOGITS = {"atol": 1e-3, "rtol": 0.0}


def weights_of(folder: Path, letter: str | None = None) -> Path:
    """A folder's own model; cases without one share that of variant ``letter``, or of the first variant, which may be one
    that the repository ships."""
    if letter is None and (folder / "hf_model").is_dir():
        return folder / "hf_model"
    name = f"mustdrop_e2e_{letter or '*'}/hf_model"
    candidates = [*sorted(folder.parent.glob(name)), *sorted(SHIPPED.glob(name))]
    assert candidates, f"no weights for {folder.name}: no {name}"
    return candidates[0]


@cache
def load(cls: Any, path: Path, attention: str = "sdpa") -> Any:
    return cls.from_pretrained(path, attn_implementation=attention).eval()


# -- MustDrop: all three stages --------------------------------------------------------------------------------------

MUSTDROP = [pytest.param(folder, attention, id=f"{folder.name}-{attention}")
            for folder in folders("mustdrop_e2e") for attention in ("sdpa", "eager")]  # fmt: skip


def mustdrop(folder: Path) -> Pipeline:
    case = meta(folder)
    thresholds = {"global_threshold": case["global_thr"], "individual_threshold": case["individual_thr"]}
    return Pipeline("mustdrop", {"name": "mustdrop", **thresholds}, "mustdrop")


@pytest.mark.parametrize(("folder", "attention"), MUSTDROP)
def test_mustdrop_generates_the_published_tokens(folder: Path, attention: str) -> None:
    case, vectors = meta(folder), tensors(folder)
    model = load(LlavaForConditionalGeneration, weights_of(folder), attention)
    ids = vectors["input_ids_hf"]
    with mustdrop(folder).attach(model) as trace:
        out = generate(model, len(vectors["generated_ids"]), input_ids=ids, pixel_values=vectors["pixel_values"])
    record = trace.last
    assert torch.equal(out.sequences[0, ids.shape[1] :], vectors["generated_ids"])
    torch.testing.assert_close(out.logits[0], vectors["prefill_last_logits"], **LOGITS)
    torch.testing.assert_close(torch.cat(out.logits[1:]), vectors["decode_logits"], **LOGITS)
    assert record.image_tokens == case["clip_tokens_before"]
    assert record.after_vision == case["clip_tokens_after_merge"]
    assert [int(n) for n in record.sequence_tokens] == case["layer_input_len_prefill"]
    assert [int(n) for n in record.cache_lengths] == case["kv_len_after_last_decode"]
    assert_mustdrop_kept(record, vectors, case)


def assert_mustdrop_kept(record: Any, vectors: dict[str, Tensor], case: dict[str, Any]) -> None:
    first = record.kept[0][0].tolist()
    for layer in (2, 6, 10, 14):
        survivors = [first.index(token) for token in record.kept[layer + 1][0].tolist()]
        assert survivors == vectors[f"layer{layer}.kept_vision_cumulative"].tolist()
    assert sorted(first.index(token) for token in record.protected[0].tolist()) == sorted(vectors["key_set"].tolist())
    images: Images = record._request.images[0]
    membership = vectors["merge_membership"]
    assert torch.equal(images.source[0], membership.long().argmax(dim=0))
    assert torch.equal(images.sizes[0], membership.float().sum(dim=1))
    equal_tokens = case["official_stdout"][-1].rsplit(":", 1)[-1]
    # The published figure counts the tokens that leave each layer, ours those that enter it.
    leaving = [int(n) for n in record.vision_tokens[1:]] + [int(record.vision_tokens[-1])]
    assert sum(leaving) / len(leaving) == pytest.approx(float(equal_tokens))


@pytest.mark.parametrize("folder", folders("mustdrop_e2e"), ids=lambda folder: folder.name)
def test_mustdrop_leaves_the_published_cache_and_hidden_states(folder: Path) -> None:
    case, vectors = meta(folder), tensors(folder)
    model = load(LlavaForConditionalGeneration, weights_of(folder))
    hidden: list[Tensor] = []
    with mustdrop(folder).attach(model) as trace, torch.no_grad():
        handle = model.model.language_model.norm.register_forward_hook(lambda m, a, out: hidden.append(out))
        out = model(input_ids=vectors["input_ids_hf"], pixel_values=vectors["pixel_values"], use_cache=True)
        handle.remove()
    torch.testing.assert_close(out.logits[:, -1], vectors["prefill_last_logits"], **LOGITS)
    torch.testing.assert_close(hidden[0], vectors["prefill_final_hidden_normed"], **LOGITS)
    layers = cache_in(out).layers
    assert [layer.keys.shape[2] for layer in layers] == case["kv_len_after_prefill"]
    for name, expected in vectors.items():
        if name.startswith("kv_prefill."):
            _, layer, kind = name.split(".")
            torch.testing.assert_close(getattr(layers[int(layer)], kind + "s"), expected, **LOGITS)
    # Logits stay aligned with the ids that were given, dropped columns included.
    assert out.logits.shape[1] == vectors["input_ids_hf"].shape[1]
    assert trace.last.kept[0][0].shape[0] == case["clip_tokens_after_merge"]


@pytest.mark.parametrize("folder", folders("mustdrop_e2e"), ids=lambda folder: folder.name)
def test_vanilla_is_vanilla(folder: Path) -> None:
    vectors = tensors(folder)
    if "vanilla.step_logits" not in vectors:
        pytest.fail(f"{folder.name} has no vanilla.step_logits")
    model = load(LlavaForConditionalGeneration, weights_of(folder))
    steps = vectors["vanilla.step_logits"]
    with Pipeline().attach(model):
        out = generate(model, len(steps), input_ids=vectors["input_ids_hf"], pixel_values=vectors["pixel_values"])
    torch.testing.assert_close(torch.cat(out.logits), steps, **LOGITS)


# -- FastV -----------------------------------------------------------------------------------------------------------

FASTV = [
    pytest.param(folder, name, id=f"{folder.name}-{name}")
    for folder in folders("fastv_e2e")
    for name in meta(folder)["cases"]
]


def fastv_case(folder: Path, name: str) -> tuple[Any, dict[str, Any], dict[str, Tensor], dict[str, Tensor], Pipeline]:
    case = meta(folder)["cases"][name]
    letter = case["model"]
    shared = group(folder, letter)
    inputs = {"input_ids": shared["input_ids_hf"], "pixel_values": shared["pixel_values"]}
    model = load(LlavaForConditionalGeneration, weights_of(folder, letter))
    pipeline = Pipeline(prefill={"name": "fastv", "layer": case["K"], "keep_ratio": 1 - case["R"]})
    return model, case, inputs, group(folder, name), pipeline


@pytest.mark.parametrize(("folder", "name"), FASTV)
def test_fastv_with_a_cache(folder: Path, name: str) -> None:
    model, case, inputs, vectors, pipeline = fastv_case(folder, name)
    with pipeline.attach(model) as trace:
        out = generate(model, len(vectors["generated_ids"]), **inputs)
    record = trace.last
    assert torch.equal(record.kept[case["K"]][0], vectors["kept_vision"])
    assert len(record.kept[case["K"] - 1][0]) == int(record.image_tokens)
    assert torch.equal(out.sequences[0, inputs["input_ids"].shape[1] :], vectors["generated_ids"])
    torch.testing.assert_close(torch.cat(out.logits), vectors["step_logits"], **LOGITS)
    assert [int(n) for n in record.sequence_tokens] == case["layer_input_len_prefill"]
    assert [int(n) for n in record.cache_lengths] == case["kv_len_after_last"]


@pytest.mark.parametrize(("folder", "name"), FASTV)
def test_fastv_without_a_cache_prunes_anew_at_every_step(folder: Path, name: str) -> None:
    model, _, inputs, vectors, pipeline = fastv_case(folder, name)
    with pipeline.attach(model):
        out = generate(model, len(vectors["nocache_generated_ids"]), **inputs, use_cache=False)
    assert torch.equal(out.sequences[0, inputs["input_ids"].shape[1] :], vectors["nocache_generated_ids"])
    torch.testing.assert_close(torch.cat(out.logits), vectors["nocache_step_logits"], **LOGITS)


# -- H2O -------------------------------------------------------------------------------------------------------------

H2O = [
    pytest.param(folder, name, id=f"{folder.name}-{name}")
    for folder in folders("h2o_e2e")
    for name in meta(folder)["cases"]
]


def h2o_pipeline(name: str, case: dict[str, Any]) -> Pipeline:
    if name.startswith("h"):  # the simulated evaluation: budgets are shares of the prompt, nothing leaves the cache
        return Pipeline(cache={"name": "h2o", "heavy_ratio": case["heavy_ratio"], "recent_ratio": case["recent_ratio"],
                               "eviction": "mask"})  # fmt: skip
    positions = "rerotate" if name.startswith("s") else "keep"
    return Pipeline(cache={"name": "h2o", "heavy_tokens": case["hh_size"], "recent_tokens": case["recent_size"],
                           "positions": positions})  # fmt: skip


@pytest.mark.parametrize(("folder", "name"), H2O)
def test_h2o(folder: Path, name: str) -> None:
    case, vectors = meta(folder)["cases"][name], group(folder, name)
    model = load(LlamaForCausalLM, folder / "hf_model", "eager")
    ids = vectors["input_ids"]
    step = -1
    seen: dict[str, Tensor] = {}

    def after_forward(module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
        nonlocal step
        when = "after_prefill" if step < 0 else f"after_step{step}"
        for number, layer in enumerate(cache_in(kwargs).layers):
            if layer.visible is not None:  # the mask for the next step, whose own key is always seen
                seen[f"layer{number}.mask_{when}"] = nn.functional.pad(layer.visible[0], (0, 1), value=True)
            else:
                seen[f"layer{number}.kept_{when}"] = layer.full_index()[0].expand(layer.keys.shape[1], -1).clone()
        step += 1

    with h2o_pipeline(name, case).attach(model):
        handle = model.model.register_forward_hook(after_forward, with_kwargs=True)
        out = generate(model, len(vectors["generated_ids"]), input_ids=ids)
        handle.remove()
    assert torch.equal(out.sequences[0, ids.shape[1] :], vectors["generated_ids"])
    torch.testing.assert_close(torch.cat(out.logits), vectors["step_logits"], **LOGITS)
    expected = {key: value for key, value in vectors.items() if ".kept_" in key or ".mask_" in key}
    assert expected
    for key, value in expected.items():
        assert torch.equal(seen[key].to(value.dtype), value), key


# -- ToMe inside a tower ---------------------------------------------------------------------------------------------

TOME = [pytest.param(folder, name, id=f"{folder.name}-{name}")
        for folder in folders("tome_units") if (folder / "vit.json").exists()
        for name in meta(folder, "vit.json")["cases"]]  # fmt: skip


@pytest.mark.parametrize(("folder", "name"), TOME)
def test_tome_inside_a_clip_tower(folder: Path, name: str) -> None:
    case, vectors = meta(folder, "vit.json")["cases"][name], group(folder, name, "vit.safetensors")
    pixels = tensors(folder, "vit.safetensors")[f"{case['model']}.pixel_values"]
    model = load(CLIPVisionModel, folder / f"clip_{case['model']}", "eager")
    r = case["r"]
    fields = {"r": r} if isinstance(r, int) or len(r) == len(case["r_per_layer"]) else {"r": r[0], "inflect": r[1]}
    reducer = ToMe(**fields, proportional_attention=case["prop_attn"])
    projector = nn.Identity()
    tower = clip_tower(model, projector, -1)
    encoded = Encoded(Adapter(family="clip", model=model, decoder=None, tower=tower))
    stage = VisionStage(tower, reducer, encoded, digests=False)
    hooks = Hooks()
    stage.install(hooks)
    try:
        with torch.no_grad():
            out = model(pixels, output_hidden_states=True)
            projector(out.last_hidden_state[:, 1:])
    finally:
        hooks.close()
    for key, expected in vectors.items():
        if key.startswith("hidden"):
            torch.testing.assert_close(out.hidden_states[int(key[6:])], expected, **LOGITS)
    torch.testing.assert_close(out.pooler_output, vectors["pooler_output"], **LOGITS)
    assert_tome_bookkeeping(encoded.pending[0], vectors, len(case["r_per_layer"]))


def assert_tome_bookkeeping(images: Images, vectors: dict[str, Tensor], depth: int) -> None:
    """The vectors count the CLS token as token 0 of the sequence; ours leaves it out."""
    last = max(int(key.rsplit("block", 1)[1]) for key in vectors if key.startswith("source_after_block"))
    source = vectors[f"source_after_block{last}"].long()
    assert torch.equal(images.source, source.argmax(dim=1)[:, 1:] - 1)
    sizes = vectors[f"size_after_block{last}"]
    torch.testing.assert_close(images.sizes, sizes[:, 1:])
    assert last == depth - 1
