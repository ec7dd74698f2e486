"""Pictures of one pipeline at work: ``tokcomp view`` and the overlays of the documentation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from tokcomp.errors import ConfigurationError
from tokcomp.experiment.load import LoadedModel
from tokcomp.pipeline import Pipeline
from tokcomp.report.figure import draw, panels_of, place
from tokcomp.report.story import Story, tell
from tokcomp.report.style import MUTED, figure, styled

__all__ = ["overlay", "render"]


def render(
    image: Image.Image,
    question: str,
    pipeline_spec: Mapping[str, Any],
    model: str | LoadedModel = "tiny",
    out: Path = Path("view.png"),
    *,
    max_new_tokens: int = 64,
) -> dict[str, Any]:
    """Ask one question with and without compression and draw what every stage did.

    Args:
        image: any size; the picture shows what the model's processor makes of it.
        question: the question alone; the model's own template is put around it.
        pipeline_spec: what :class:`~tokcomp.Pipeline` takes, by stage.
        model: an option of ``configs/model``, or a model that is loaded already.
        out: where the PNG goes; missing folders are made.
        max_new_tokens: longest answer.

    Returns:
        ``dense`` and ``compressed`` (the answers), ``same``, ``image_tokens``, ``after_vision``, ``vision_tokens`` (by
        layer), ``equivalent_tokens``, ``kv_entries`` and ``kv_entries_dense`` (all layers, after the prefill).

    Raises:
        ConfigurationError: an unknown model, strategy or field, or matplotlib is missing.
        CompatibilityError, UnsupportedError: pipeline and model do not fit.
    """
    pipeline = Pipeline(**pipeline_spec)
    with styled():
        loaded, name = _loaded(model)
        story = tell(loaded, image, question, pipeline, max_new_tokens=max_new_tokens)
        _save(draw(story, pipeline, name), out)
    return {
        "dense": story.dense,
        "compressed": story.compressed,
        "same": story.dense == story.compressed,
        "image_tokens": story.image_tokens,
        "after_vision": story.after_vision,
        "vision_tokens": list(story.vision_tokens),
        "equivalent_tokens": story.equivalent_tokens,
        "kv_entries": sum(story.cache.prefill),
        "kv_entries_dense": story.cache.dense[0] * len(story.cache.prefill),
    }


def overlay(
    images: Sequence[Image.Image],
    questions: Sequence[str],
    pipeline_spec: Mapping[str, Any],
    model: str | LoadedModel = "tiny",
    out: Path = Path("overlay.png"),
    *,
    max_new_tokens: int = 64,
) -> list[Story]:
    """Draw what a pipeline keeps of several images: above what the model sees, below what its last stage leaves.

    Args:
        images, questions: one question per image.
        pipeline_spec: what :class:`~tokcomp.Pipeline` takes, by stage; at least one stage acts.
        model: an option of ``configs/model``, or a model that is loaded already.
        out: where the PNG goes; missing folders are made.
        max_new_tokens: longest answer; what a cache policy evicts depends on it.

    Raises:
        ConfigurationError: as :func:`render`; or nothing acts.
    """
    pipeline = Pipeline(**pipeline_spec)
    if pipeline == Pipeline():
        raise ConfigurationError("an overlay shows what a strategy keeps: give at least one stage")
    with styled():
        loaded, _ = _loaded(model)
        stories = [
            tell(loaded, image, question, pipeline, max_new_tokens=max_new_tokens)
            for image, question in zip(images, questions, strict=True)
        ]
        _save(_columns_of(stories, pipeline), out)
    return stories


def _columns_of(stories: Sequence[Story], pipeline: Pipeline) -> Any:
    tallest = max(min(max(story.seen.shape[0] / story.seen.shape[1], 0.5), 1.6) for story in stories)
    cell = (2.75, 2.75 * tallest)
    canvas = figure(0.8 + 2.75 * len(stories) + 0.3 * (len(stories) - 1), 0.5 + 2 * cell[1] + 0.9)
    differ = len({story.question for story in stories}) > 1
    for column, story in enumerate(stories):
        panels = panels_of(story, pipeline)
        for row, panel in enumerate((panels[0], panels[-1])):
            axes = place(canvas, column, row, cell, -0.1)
            title = panel.note if row else story.question if differ else ""
            axes.set_title(title, loc="left", fontsize=8.5, color=MUTED)
            panel.draw(axes)
    return canvas


def _loaded(model: str | LoadedModel) -> tuple[LoadedModel, str]:
    if isinstance(model, LoadedModel):
        return model, _name_of(model)
    from tokcomp.experiment.compose import compose
    from tokcomp.experiment.config import RunConfig
    from tokcomp.experiment.load import load_model

    config = RunConfig.resolve(compose([f"model={model}"]))
    return load_model(config.model, device=config.device, dtype=config.torch_dtype), config.model.name


def _name_of(loaded: LoadedModel) -> str:
    from tokcomp.embedded import WEIGHTS

    path = Path(getattr(loaded.model, "name_or_path", "") or type(loaded.model).__name__)
    return "the embedded model" if path == WEIGHTS else path.name


def _save(canvas: Any, out: Path) -> None:
    out.parent.mkdir(parents=True, exist_ok=True)
    canvas.savefig(out, format="png")
