"""Answers and the tokens that they took, against what the model and the trace say."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from tests.measure.tiny_models import counted
from tests.models.families import families, models
from tokcomp import Pipeline
from tokcomp.benchmarks.base import Sample
from tokcomp.benchmarks.scenes import Scenes
from tokcomp.experiment.answers import Answer, _dense, answer_all
from tokcomp.experiment.config import ModelConfig
from tokcomp.experiment.load import LoadedModel, load_model
from tokcomp.measure.flops import count
from tokcomp.measure.schedule import expected_workload

LONGEST = 3


@pytest.fixture(scope="module")
def loaded(untrained: Path) -> LoadedModel:
    return load_model(ModelConfig(path=str(untrained)), device="cpu", dtype=torch.float32)


@pytest.fixture(scope="module")
def samples() -> list[Sample]:
    return list(Scenes(samples=5, kinds=("count", "digit_of_colour", "list_digits")).load())


def ask(loaded: LoadedModel, samples: list[Sample], pipeline: Pipeline | None = None, **options: Any) -> list[Answer]:
    settings = {"batch_size": 3, "max_new_tokens": LONGEST, **options}
    return answer_all(loaded, samples, pipeline=pipeline, **settings)


def test_dense_answers_are_the_models_own(loaded: LoadedModel, samples: list[Sample]) -> None:
    answers = ask(loaded, samples)
    for sample, answer in zip(samples, answers, strict=True):
        inputs = loaded.inputs([sample.question], [sample.images])
        ids = loaded.model.generate(**inputs, max_new_tokens=LONGEST, do_sample=False)
        assert answer.text == loaded.texts(ids[:, inputs["input_ids"].shape[1] :])[0]
        length = inputs["input_ids"].shape[1]
        assert answer.tokens.sequence_tokens == (length,) * 8
        assert (answer.tokens.image_tokens, answer.tokens.equivalent_tokens) == (144, 144)
        assert answer.work.text_tokens == length - 144


def test_without_strategies_both_sides_count_alike(loaded: LoadedModel, samples: list[Sample]) -> None:
    dense, same = ask(loaded, samples), ask(loaded, samples, Pipeline())
    assert [answer.text for answer in dense] == [answer.text for answer in same]
    assert [answer.tokens for answer in dense] == [answer.tokens for answer in same]
    for a, b in zip(dense, same, strict=True):
        assert count(loaded.shape, a.work).by_part() == count(loaded.shape, b.work).by_part()


@pytest.mark.parametrize(
    ("family", "images"),
    [("llava_next", 1), ("llava_onevision", 1), ("qwen2_vl", 1), ("qwen2_vl", 2), ("internvl", 3)],
)
def test_dense_work_is_that_of_tiles_and_of_images_of_several_sizes(family: str, images: int) -> None:
    """``images`` pictures of a tower; a processor that cuts tiles calls them one image."""
    model, inputs = models(family, "eager"), families()[family].sample(images, 0)
    inputs["attention_mask"] = torch.ones_like(inputs["input_ids"])
    processor = SimpleNamespace(tokenizer=SimpleNamespace(pad_token_id=0, eos_token_id=0))
    loaded = LoadedModel(model, processor, model.device, torch.float32)
    asked = images if family.startswith("qwen") else 1
    ((tokens, work),) = _dense(loaded, inputs, loaded.shape, [asked], [1])
    made, _ = counted(lambda: model(**inputs, logits_to_keep=1))
    assert count(loaded.shape, work).total == made
    assert tokens.cache_lengths == tokens.sequence_tokens == (inputs["input_ids"].shape[1],) * loaded.shape.layers


@pytest.mark.parametrize(
    "pipeline",
    [
        Pipeline(vision="tome", prefill="fastv", cache="h2o"),
        Pipeline(vision={"name": "random", "keep_tokens": 30}, cache={"name": "streaming_llm", "keep_ratio": 0.3}),
        Pipeline(vision="pool", prefill={"name": "random", "layer": 3, "keep_tokens": 7}, cache="random"),
        Pipeline(cache={"name": "h2o", "heavy_tokens": 5, "recent_tokens": 6}),
    ],
    ids=["tome+fastv+h2o", "random+streaming", "pool+random+random", "h2o"],
)
def test_recorded_work_is_what_the_fields_promise(
    loaded: LoadedModel, samples: list[Sample], pipeline: Pipeline
) -> None:
    """Strategies whose counts follow from their fields: the record must agree with the dry run, part by part."""
    for sample, answer in zip(samples, ask(loaded, samples, pipeline), strict=True):
        prompt = loaded.inputs([sample.question], [sample.images])["input_ids"]
        before = int((prompt[0] == loaded.model.config.image_token_id).nonzero()[0])
        expected = expected_workload(
            loaded.shape,
            pipeline,
            image_tokens=144,
            text_tokens=prompt.shape[1] - 144,
            text_before=before,
            new_tokens=answer.tokens.new_tokens,
            summed=True,
        )
        assert answer.tokens.vision_tokens == expected.vision_tokens
        assert answer.tokens.cache_lengths == pytest.approx(expected.cache_lengths)
        wanted = count(loaded.shape, expected.workload).by_part()
        assert count(loaded.shape, answer.work).by_part() == pytest.approx(wanted)


@pytest.mark.parametrize("pipeline", [Pipeline.from_preset("mustdrop"), Pipeline.from_preset("mustdrop+h2o")])
def test_a_batch_is_counted_as_its_samples_one_by_one(
    loaded: LoadedModel, samples: list[Sample], pipeline: Pipeline
) -> None:
    together, alone = ask(loaded, samples, pipeline, batch_size=5), ask(loaded, samples, pipeline, batch_size=1)
    assert together == alone
    assert len({answer.tokens.after_vision for answer in alone}) > 1, "the counts are ragged, or nothing is shown"


def test_steps_that_wait_for_the_other_samples_are_not_counted(
    loaded: LoadedModel, samples: list[Sample], monkeypatch: pytest.MonkeyPatch
) -> None:
    """One sample of the batch ends at once: its work is the prefill's, whatever the batch goes on to do."""
    monkeypatch.setattr(LoadedModel, "lengths", lambda self, ids: [1, 3, 2][: ids.shape[0]])
    for pipeline in (None, Pipeline(cache="h2o"), Pipeline(prefill="fastv")):
        answers = ask(loaded, samples[:3], pipeline)
        assert [answer.work.new_tokens for answer in answers] == [1, 3, 2]
        assert count(loaded.shape, answers[0].work).decode == 0


def test_progress_is_told_and_the_model_is_left_as_it_was(loaded: LoadedModel, samples: list[Sample]) -> None:
    told: list[int] = []
    before = ask(loaded, samples)
    ask(loaded, samples, Pipeline.from_preset("mustdrop"), progress=told.append)
    assert told == [3, 2]
    assert ask(loaded, samples) == before
