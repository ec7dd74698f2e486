"""Every file under configs/ composes, says what it is, and means what the strategies mean."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from tokcomp import Pipeline
from tokcomp.experiment.compose import compose
from tokcomp.experiment.config import RunConfig
from tokcomp.experiment.paths import config_dir, option_names
from tokcomp.experiment.prediction import PredictionConfig
from tokcomp.experiment.presets import load_preset, preset_names
from tokcomp.pipeline import build_strategy
from tokcomp.registry import REGISTRIES

STAGES = tuple(REGISTRIES)
STRATEGIES = [(stage, name) for stage, registry in REGISTRIES.items() for name in registry]
OPTIONS = [(stage, name) for stage in STAGES for name in option_names(stage)]
FILES = sorted(config_dir().rglob("*.yaml"))
COMMANDS = [
    (path.name, line.strip("# \n"))
    for path in FILES
    for line in path.read_text(encoding="utf-8").splitlines()
    if re.match(r"#\s+tokcomp (run|flops) ", line)
]


def composed(stage: str, name: str) -> dict[str, object]:
    section: dict[str, object] = compose([f"{stage}={name}"])[stage]
    return section


@pytest.mark.parametrize(("stage", "name"), STRATEGIES)
def test_each_strategy_has_an_option_of_its_name_with_its_defaults(stage: str, name: str) -> None:
    section = composed(stage, name)
    cls = REGISTRIES[stage][name]
    assert set(section) == {"name", *cls.model_fields}
    assert build_strategy(stage, section).spec() == cls().spec()


@pytest.mark.parametrize(("stage", "name"), OPTIONS)
def test_each_option_of_a_stage_builds(stage: str, name: str) -> None:
    built = build_strategy(stage, composed(stage, name))
    assert (built is None) == (name == "none")
    assert built is None or name.partition("-")[0] == built.name


@pytest.mark.parametrize(
    ("option", "thresholds"), [("192", (0.001, 0.001)), ("128", (0.0012, 0.001)), ("64", (0.011, 0.01))]
)
def test_published_settings_of_mustdrop(option: str, thresholds: tuple[float, float]) -> None:
    built = build_strategy("prefill", composed("prefill", f"mustdrop-{option}"))
    assert (built.global_threshold, built.individual_threshold) == thresholds
    assert built.model_copy(update={"global_threshold": 0.001, "individual_threshold": 0.001}) == build_strategy(
        "prefill", "mustdrop"
    )


@pytest.mark.parametrize("path", FILES, ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_each_file_begins_with_what_it_is(path: Path) -> None:
    lines = [line for line in path.read_text(encoding="utf-8").splitlines() if "@package" not in line]
    assert re.match(r"# \S.{15,}", lines[0]), f"{path} does not say what it is"


@pytest.mark.parametrize("name", preset_names())
def test_a_preset_only_selects(name: str) -> None:
    text = (config_dir() / "preset" / f"{name}.yaml").read_text(encoding="utf-8")
    plain = OmegaConf.to_container(OmegaConf.create(text))
    assert text.startswith("# @package _global_\n")
    assert isinstance(plain, dict)
    assert set(plain) == {"defaults"}
    assert [list(choice) for choice in plain["defaults"]] == [[f"override /{stage}"] for stage in STAGES]


@pytest.mark.parametrize("name", preset_names())
def test_a_preset_is_the_pipeline_of_its_options(name: str) -> None:
    config = RunConfig.resolve(compose([f"preset={name}"]))
    assert Pipeline(**load_preset(name)) == config.pipeline == Pipeline.from_preset(name)


def test_presets_that_were_promised_are_there() -> None:
    promised = {"mustdrop", "mustdrop-192", "mustdrop-128", "mustdrop-64", "fastv", "tome", "h2o", "tome+fastv+h2o"}
    assert promised | {"mustdrop+h2o", "none"} <= set(preset_names())
    assert load_preset("mustdrop") == load_preset("mustdrop-192")
    assert load_preset("none") == dict.fromkeys(STAGES)


@pytest.mark.parametrize("order", [1, -1])
def test_the_command_line_wins_over_a_preset(order: int) -> None:
    config = compose(["preset=mustdrop", "vision=none"][::order])
    assert [config[stage]["name"] for stage in STAGES] == ["none", "mustdrop", "mustdrop"]


def test_the_command_line_wins_over_an_experiment() -> None:
    overrides = ["experiment=inside_or_outside", "prefill=random", "benchmark.samples=7"]
    config = RunConfig.resolve(compose(overrides))
    assert config.pipeline == Pipeline(vision="tome", prefill="random")
    assert config.benchmark.samples == 7
    assert config.benchmark.spec()["kinds"] == ["digit_of_colour", "colour_of_digit", "extreme"]


@pytest.mark.parametrize("name", option_names("experiment"))
def test_an_experiment_holds_differences_and_shows_its_command(name: str) -> None:
    text = (config_dir() / "experiment" / f"{name}.yaml").read_text(encoding="utf-8")
    assert f"tokcomp run experiment={name}\n" in text
    given = RunConfig.resolve(compose([f"experiment={name}"])).model_dump(mode="json")
    plain = RunConfig.resolve(compose()).model_dump(mode="json")
    stated = OmegaConf.to_container(OmegaConf.create(text))
    assert isinstance(stated, dict)
    for section in set(stated) - {"defaults"}:
        for field in stated[section]:
            assert given[section][field] != plain[section][field], f"{name} repeats the default of {section}.{field}"


@pytest.mark.parametrize("command", [command for _, command in COMMANDS], ids=[name for name, _ in COMMANDS])
def test_commands_in_comments_compose(command: str, tmp_path: Path) -> None:
    _, root, *overrides = command.replace("/data/my-llava", str(tmp_path)).split()
    config = compose(overrides, config_name=root)
    assert (RunConfig if root == "run" else PredictionConfig).resolve(config)


@pytest.mark.parametrize("name", sorted(set(option_names("model")) - {"checkpoint"}))
def test_each_model_option_is_valid(name: str) -> None:
    assert RunConfig.resolve(compose([f"model={name}"])).model.name == name
