"""Adapters of somebody else's: by entry point, decorator and dotted path, and refused in one line."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import nn

from tests import tiny_models
from tests.plugins_in_a_folder import Install, installing
from tokcomp import Pipeline
from tokcomp.errors import PluginError, PluginWarning
from tokcomp.experiment.code import code_version
from tokcomp.experiment.config import ModelConfig, RunConfig
from tokcomp.experiment.load import load_model
from tokcomp.models.adapter import find_adapter, register_adapter, use_adapter

ADAPTER = """from dataclasses import replace
from tokcomp.models.adapter import register_adapter
from tokcomp.models.llava import build as llava

{decorator}
def build(model):
    return replace(llava(model.inner), model=model, family="{family}")
"""


class OddModel(nn.Module):
    """A model of a class that no family has."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = tiny_models.llava()
        self.config = self.inner.config

    def forward(self, **inputs: torch.Tensor) -> object:
        return self.inner(**inputs)


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Install]:
    (tmp_path / "site").mkdir()
    with installing(tmp_path / "site", monkeypatch) as installer:
        yield installer


def test_an_installed_package_adds_a_family(install: Install) -> None:
    source = ADAPTER.format(decorator='@register_adapter("OddModel")', family="odd")
    install("odd", {"odd_adapter.py": source}, {"tokcomp.models": {"odd": "odd_adapter"}})
    model = OddModel()
    assert find_adapter(model).family == "odd"
    pixels = torch.randn(1, 3, 84, 84, generator=torch.Generator().manual_seed(0))
    with Pipeline(vision="divprune").attach(model) as trace, torch.no_grad():
        model(input_ids=tiny_models.prompt(36, 2, 3), pixel_values=pixels)
    assert trace.last.after_vision == 9


@pytest.mark.parametrize(("source", "entry", "said"), [
    (ADAPTER.format(decorator='@register_adapter("LlavaModel")', family="odd"), "bad_adapter",
     "an adapter for 'LlavaModel' .*: the name is taken by tokcomp.models.llava"),
    (ADAPTER.format(decorator="", family="odd"), "bad_adapter:build", "neither a module nor a function that register_adapter"),
    ("1 / 0", "bad_adapter", "ZeroDivisionError"),
    ("from tokcomp.models.adapter import register_adapter\nregister_adapter('X')(3)", "bad_adapter", "is not a function"),
])  # fmt: skip
def test_a_broken_adapter_disables_no_other(install: Install, source: str, entry: str, said: str) -> None:
    install("bad-adapter", {"bad_adapter.py": source}, {"tokcomp.models": {"bad": entry}})
    install("odd", {"odd_adapter.py": ADAPTER.format(decorator='@register_adapter("OddModel")', family="odd")},
            {"tokcomp.models": {"odd": "odd_adapter"}})  # fmt: skip
    with pytest.warns(PluginWarning, match=rf"^plug-in 'bad' \({entry}, bad-adapter 1.0\) was left out: .*{said}"):
        assert find_adapter(OddModel()).family == "odd"
    assert find_adapter(tiny_models.llava()).family == "llava"


def test_a_dotted_path_chooses_the_adapter_of_one_model(
    install: Install, untrained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("local_adapter.py").write_text(
        "from dataclasses import replace\nfrom tokcomp.models import llava\n"
        "def build(model):\n    return replace(llava.build(model), family='mine')\n"
        "def wrong(model):\n    return 3\n"
    )
    model = ModelConfig(path=str(untrained), adapter="local_adapter:build")
    loaded = load_model(model, device="cpu", dtype=torch.float32)
    assert find_adapter(loaded.model).family == "mine"
    assert find_adapter(tiny_models.llava()).family == "llava"
    with_it, without = (RunConfig(model=each) for each in (model, model.model_copy(update={"adapter": None})))
    assert code_version(with_it) != code_version(without)
    use_adapter(loaded.model, "local_adapter:wrong")
    with pytest.raises(
        PluginError, match=r"local_adapter.wrong gave int for Llava.*returns a tokcomp.models.adapter.Adapter"
    ):
        find_adapter(loaded.model)
    with pytest.raises(PluginError, match="the adapter local_adapter:llava is not a function"):
        use_adapter(loaded.model, "local_adapter:llava")


def test_the_same_builder_may_come_twice_and_another_may_not() -> None:
    def build(model: nn.Module) -> object:
        raise NotImplementedError

    with pytest.raises(PluginError, match=r"'LlavaModel' .*the name is taken by tokcomp.models.llava"):
        register_adapter("LlavaModel")(build)  # type: ignore[arg-type]
