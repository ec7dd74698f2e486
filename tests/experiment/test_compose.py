"""Composition: what is wrong is said in one line, and nobody else's Hydra is touched."""

from __future__ import annotations

from importlib.metadata import EntryPoint
from pathlib import Path

import pytest
import torch
from hydra import compose as hydra_compose
from hydra import initialize_config_dir
from hydra.core.config_store import ConfigStore
from hydra.core.global_hydra import GlobalHydra
from hydra.version import VersionBase

from tokcomp import VISION, Selection, Site, VisionReducer, VisionView
from tokcomp.errors import ConfigurationError
from tokcomp.experiment import paths
from tokcomp.experiment.compose import compose
from tokcomp.experiment.config import RunConfig
from tokcomp.experiment.presets import load_preset

WRONG = {
    "vision=tomee": "unknown vision strategy 'tomee'; did you mean 'tome'? known: ",
    "preset=mustrop": "unknown preset 'mustrop'; did you mean 'mustdrop'? known: ",
    "model=tinyy": "unknown model 'tinyy'; did you mean 'tiny'? known: ",
    "vision=null": "vision takes the name of one option; give vision=none",
    "preset=[tome,fastv]": "preset takes the name of one option",
    "vison=tome": "'vison' is not a setting of `tokcomp run`; did you mean 'vision'?",
    "sed=2": "'sed' is not a setting of `tokcomp run`; did you mean 'seed'?",
    "prefill.layer=3": "'layer' is not a setting of prefill 'none', which has none: choose a strategy with prefill=NAME",
    "model.pth=x": "'pth' is not a setting of model 'tiny'; did you mean 'path'? it takes: adapter, attention, ",
    "measure.timin=false": "'timin' is not a setting of measure; did you mean 'timing'?",
    "vision.r=[1": "'vision.r=[1' cannot be read: give name=value",
    "vision": "'vision' cannot be read: give name=value",
    "vision=tome,none": "'vision=tome,none' gives several values, and a run takes one",
    "model=checkpoint": "model.path has no default: give model.path=VALUE",
    "seed=???": "seed has no default: give seed=VALUE",
    "benchmark.seed=${nowhere}": "benchmark.seed: Interpolation key 'nowhere' not found",
    "hydra/launcher=basik": "unknown hydra/launcher 'basik'; did you mean 'basic'? known: basic, ",
    "hydra/foo=basic": "Could not override 'hydra/foo'",
    "hydra.foo=2": "Could not override 'hydra.foo': Key 'foo' not in 'HydraConf'",
}


@pytest.mark.parametrize(("override", "message"), WRONG.items())
def test_a_wrong_override_is_named_in_one_line(override: str, message: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        compose([override])
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_an_unknown_field_of_a_strategy() -> None:
    line = "'rr' is not a setting of vision 'tome'; did you mean 'r'? it takes: inflect, positions, proportional"
    with pytest.raises(ConfigurationError, match=line[:60].replace("?", r"\?")):
        compose(["vision=tome", "vision.rr=3"])


def test_groups_of_one_root_are_unknown_to_the_other() -> None:
    with pytest.raises(ConfigurationError, match="'benchmark' is not a setting of `tokcomp flops`"):
        compose(["benchmark=scenes"], config_name="flops")


def test_values_reach_the_configuration() -> None:
    config = compose(["vision=tome", "vision.r=[3,2]", "model.path='/data/a=b c'", "seed=4", "~cache"])
    assert config["vision"]["r"] == [3, 2]
    assert config["model"]["path"] == "/data/a=b c"
    assert config["benchmark"]["seed"] == 4
    assert RunConfig.resolve(config).cache is None


def test_the_callers_hydra_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text("a: 1\n")
    with initialize_config_dir(str(tmp_path), version_base="1.2"):
        application, version = GlobalHydra.instance().hydra, VersionBase.instance().getbase()
        load_preset("mustdrop-64")
        with pytest.raises(ConfigurationError):
            compose(["vision=nothing_of_the_kind"])
        assert GlobalHydra.instance().hydra is application
        assert VersionBase.instance().getbase() is version
        assert hydra_compose("mine", ["a=2"]).a == 2
    load_preset("none")
    assert not GlobalHydra.instance().is_initialized()


@pytest.fixture
def third_party(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An installed package with a ``configs`` folder, announced by an entry point."""
    folder = tmp_path / "their_strategies" / "configs"
    (folder / "preset").mkdir(parents=True)
    (folder.parent / "__init__.py").write_text("")
    (folder / "preset" / "theirs.yaml").write_text(
        "# @package _global_\ndefaults:\n  - override /vision: pool\n  - override /prefill: none\n  - override /cache: none\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    point = EntryPoint("theirs", "their_strategies.inner", "tokcomp.strategies")
    monkeypatch.setattr(paths, "points", lambda group: [point] if group == "tokcomp.strategies" else [])
    return folder


def test_configs_of_an_installed_package_join(third_party: Path) -> None:
    assert "theirs" in paths.option_names("preset")
    spec = load_preset("theirs")
    assert spec["vision"] is not None
    assert spec["vision"]["name"] == "pool"
    assert spec["prefill"] is None


def test_configs_of_an_installed_package_join_no_other_application(third_party: Path, tmp_path: Path) -> None:
    load_preset("theirs")
    (tmp_path / "mine.yaml").write_text("a: 1\n")
    with initialize_config_dir(str(tmp_path), version_base="1.3"):
        search_path = GlobalHydra.instance().config_loader().get_search_path().get_path()
        assert str(third_party) not in str(search_path)


def test_a_strategy_without_a_file_is_an_option_all_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(VISION, "_classes", dict(VISION._classes) or {name: VISION[name] for name in VISION})
    monkeypatch.setattr(ConfigStore.instance(), "repo", {**ConfigStore.instance().repo, "vision": {}})

    @VISION.register("stride")
    class Stride(VisionReducer):
        """Keep every n-th token."""

        step: int = 2

        def sites(self, depth: int) -> tuple[Site, ...]:
            return (Site.features(),)

        def reduce(self, view: VisionView) -> Selection:
            return Selection(keep=torch.arange(0, view.n_tokens, self.step).expand(view.batch_size, -1))

    config = RunConfig.resolve(compose(["vision=stride", "vision.step=3"]))
    assert config.vision is not None
    assert config.vision.spec() == {"name": "stride", "step": 3, "positions": "renumber"}
    with pytest.raises(ConfigurationError, match=r"'stp' is not a setting of vision 'stride'; did you mean 'step'\?"):
        compose(["vision=stride", "vision.stp=3"])
