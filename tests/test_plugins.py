"""Plug-ins: found by decorator, entry point and dotted path; told apart; refused in one line that names plug-in and reason."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.plugins_in_a_folder import Install, installing, strategy
from tokcomp import CACHE, VISION, Pipeline
from tokcomp.benchmarks import base
from tokcomp.errors import ConfigurationError, PluginError, PluginWarning
from tokcomp.experiment.axes import read_axes
from tokcomp.experiment.code import code_version
from tokcomp.experiment.compose import compose
from tokcomp.experiment.config import RunConfig
from tokcomp.experiment.prediction import PredictionConfig
from tokcomp.experiment.space import read_space
from tokcomp.plugins import import_object, origin_of
from tokcomp.specs import build_strategy


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Install]:
    (tmp_path / "site").mkdir()
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    with installing(tmp_path / "site", monkeypatch) as installer:
        yield installer


GROUP = "tokcomp.strategies"


# -- where strategies come from ------------------------------------------------------------------------------------------


def test_an_entry_point_names_a_module_or_a_class(install: Install) -> None:
    install("their-ideas", {"their_ideas.py": strategy("theirs")}, {GROUP: {"x": "their_ideas"}}, "2.1")
    install("bare", {"bare.py": strategy("", decorator=False)}, {GROUP: {"bare_idea": "bare:Mine"}})
    assert Pipeline(vision={"name": "theirs", "step": 3}).spec()["vision"] == {
        "name": "theirs",
        "step": 3,
        "positions": "renumber",
    }
    assert str(VISION.origin("theirs")) == "their-ideas 2.1"
    assert str(VISION.origin("bare_idea")) == "bare 1.0"
    assert str(VISION.origin("tome")) == "built-in"


def test_a_dotted_path_needs_no_registration_and_is_found_in_the_working_folder(install: Install) -> None:
    Path("local_ideas.py").write_text(strategy("", decorator=False))
    spec = {"name": "local_ideas:Mine", "step": 5, "positions": "renumber"}
    config = RunConfig.resolve(compose(["vision=local_ideas:Mine", "vision.step=5"]))
    assert config.model_dump(mode="json")["vision"] == spec
    assert RunConfig.resolve(config.model_dump(mode="json")) == config
    for given in ("local_ideas:Mine", "local_ideas.Mine", {"_target_": "local_ideas.Mine"}):
        assert build_strategy("vision", given).spec() == {**spec, "step": 2}
    assert str(VISION.origin("local_ideas:Mine")) == "local_ideas"
    assert "local_ideas:Mine" not in tuple(VISION)


def test_what_a_decorator_registered_in_a_module_is_recorded_by_its_path(install: Install) -> None:
    """Another process would not know the name."""
    Path("local_marked.py").write_text(strategy("marked"))
    import_object("local_marked:Mine")
    assert Pipeline(vision="marked").spec()["vision"]["name"] == "local_marked:Mine"
    assert Pipeline(**Pipeline(vision="marked").spec()) == Pipeline(vision="marked")


def test_an_option_file_of_the_working_folder_may_name_the_class(install: Install) -> None:
    Path("local_ideas.py").write_text(strategy("", decorator=False))
    folder = Path("configs") / "vision"
    folder.mkdir(parents=True)
    (folder / "mine.yaml").write_text("# Mine.\n_target_: local_ideas.Mine\nstep: 7\n")
    config = RunConfig.resolve(compose(["vision=mine"]))
    assert config.pipeline.spec()["vision"] == {"name": "local_ideas:Mine", "step": 7, "positions": "renumber"}
    with pytest.raises(
        ConfigurationError, match=r"'stp' is not a setting of vision 'local_ideas.Mine'; did you mean 'step'"
    ):
        compose(["vision=mine", "vision.stp=3"])


def test_every_command_that_chooses_takes_a_path(install: Install) -> None:
    Path("local_ideas.py").write_text(strategy("", decorator=False))
    swept = read_axes(["vision=none,local_ideas:Mine", "vision.step=2,3"]).swept
    assert swept["vision"] == ("vision=none", "vision=local_ideas:Mine")
    space = read_space(["vision=tome,local_ideas:Mine", "vision.Mine.step=range(1,4)"])
    assert space.choices == {"vision": ("tome", "local_ideas:Mine")}
    assert list(space.settings) == [("vision", "local_ideas:Mine", "step")]
    prediction = PredictionConfig.resolve(compose(["vision=local_ideas:Mine", "vision.step=4"], config_name="flops"))
    assert prediction.vision is not None
    assert prediction.vision.spec()["name"] == "local_ideas:Mine"


# -- refusals ------------------------------------------------------------------------------------------------------------

BAD = {
    "clash": (strategy("tome"), r"vision strategy 'tome' \(bad_one.Mine\): the name is taken by tokcomp.vision.tome.ToMe"),
    "base": ("class Mine: pass", r"it names <class 'bad_one.Mine'>, which is neither a module nor a strategy class"),
    "stage": (strategy("mine").replace("@VISION", "@CACHE"), r"cache strategy 'mine' .* not a subclass of tokcomp.CachePolicy"),
    "abstract": (strategy("mine").replace("def reduce", "def reduces"), r"vision strategy 'mine' .* does not define reduce"),
    "tensor": (
        strategy("mine", body="model_config = {'arbitrary_types_allowed': True}\n    seen: torch.Tensor | None = None"),
        r"the field 'seen' has the type .*Tensor.*, which cannot stand in a configuration",
    ),
    "unknown type": (strategy("mine", body="seen: torch.Tensor"), r"PydanticSchemaGenerationError: Unable to generate"),
    "default": (strategy("mine", body="share: float = 'half'"), r"the default of 'share' does not fit its type: Input should"),
    "reserved": (strategy("mine", body="paper: str = 'x'"), r"'paper' cannot be a field, the interface has it"),
    "import": ("import no_such_module_anywhere", r"ModuleNotFoundError: No module named 'no_such_module_anywhere'"),
    "syntax": ("def broken(:", r"SyntaxError: "),
    "name": (strategy("Mine"), r"a name has lower-case letters"),
}  # fmt: skip


@pytest.mark.filterwarnings("ignore:Field name .paper. in .Mine. shadows:UserWarning")  # pydantic's own word on it
@pytest.mark.parametrize("case", BAD)
def test_a_broken_plug_in_is_named_with_its_reason_and_disables_no_other(install: Install, case: str) -> None:
    source, reason = BAD[case]
    value = "bad_one:Mine" if case == "base" else "bad_one"
    install("bad-one", {"bad_one.py": strategy("before", "Before") + source}, {GROUP: {"bad": value}}, "0.3")
    install("good-one", {"good_one.py": strategy("good")}, {GROUP: {"good": "good_one"}})
    with pytest.warns(
        PluginWarning, match=rf"^plug-in 'bad' \({value}, bad-one 0.3\) was left out: .*{reason}"
    ) as told:
        assert "good" in VISION
    (line,) = [str(one.message) for one in told if one.category is PluginWarning]
    assert "\n" not in line
    assert "before" not in VISION, "half of a plug-in that was left out stayed"
    assert {"tome", "mustdrop"} <= set(VISION)
    assert "h2o" in CACHE


@pytest.mark.parametrize(("given", "said"), [
    ("no_such:Mine", "'no_such:Mine': there is no module 'no_such'"),
    ("local_ideas:Nine", "'local_ideas:Nine': local_ideas has no 'Nine'; classes in it: Mine"),
    ("local_broken:Mine", "'local_broken:Mine' cannot be imported: ZeroDivisionError"),
    ("local_ideas:torch", "vision=local_ideas:torch is not a subclass of tokcomp.VisionReducer"),
    ("tokcomp.prefill.fastv:FastV", "vision=tokcomp.prefill.fastv:FastV is not a subclass of tokcomp.VisionReducer"),
    ("local ideas:Mine", "'local ideas:Mine' is no dotted path: give module:Class"),
])  # fmt: skip
def test_a_wrong_path_says_what_is_wrong(install: Install, given: str, said: str) -> None:
    Path("local_ideas.py").write_text(strategy("", decorator=False))
    Path("local_broken.py").write_text("1 / 0")
    with pytest.raises(PluginError, match=f"^{said}") as caught:
        Pipeline(vision=given)
    assert "\n" not in str(caught.value)


def test_name_and_target_contradict(install: Install) -> None:
    with pytest.raises(ConfigurationError, match=r"give 'name' .tome. or '_target_' .a.b:C., not both"):
        build_strategy("vision", {"name": "tome", "_target_": "a.b:C"})
    with pytest.raises(ConfigurationError, match="_target_=tome is no dotted path"):
        build_strategy("vision", {"_target_": "tome"})


# -- the version of the code ---------------------------------------------------------------------------------------------


def test_changed_code_of_a_plug_in_is_another_version(install: Install) -> None:
    """By path, from a package without ``__init__.py``, and inside a strategy that wraps others."""
    Path("ideas").mkdir()
    source = Path("ideas") / "one.py"
    source.write_text(strategy("", decorator=False))
    plain = RunConfig.resolve(compose(["vision=ideas.one:Mine"]))
    wrapped = RunConfig.resolve({"vision": {"name": "sequence", "steps": ["ideas.one:Mine"]}})
    before = code_version(plain), code_version(wrapped)
    assert before[0] != code_version(RunConfig.resolve(compose()))
    assert before[0] == before[1]
    source.write_text(source.read_text() + "# changed\n")
    from tokcomp.experiment import code

    code._foreign.cache_clear()
    after = code_version(plain), code_version(wrapped)
    assert after[0] != before[0]
    assert after[1] == after[0]


# -- benchmarks ----------------------------------------------------------------------------------------------------------

QUESTIONS = '''from tokcomp.benchmarks.base import Benchmark, register_benchmark

{decorator}
class Questions(Benchmark):
    """No question at all."""
    level: int = 1
    def load(self):
        return []
    def score(self, prediction, sample):
        return 1.0
'''


def test_benchmarks_come_by_entry_point_decorator_and_path(install: Install) -> None:
    install("quiz", {"quiz.py": QUESTIONS.format(decorator="")}, {"tokcomp.benchmarks": {"quiz": "quiz:Questions"}})
    install("quiz-2", {"quiz_2.py": QUESTIONS.format(decorator='@register_benchmark("quiz-2")')},
            {"tokcomp.benchmarks": {"any": "quiz_2"}})  # fmt: skip
    Path("local_quiz.py").write_text(QUESTIONS.format(decorator=""))
    for given, name in (("quiz", "quiz"), ("quiz-2", "quiz-2"), ("local_quiz:Questions", "local_quiz:Questions")):
        config = RunConfig.resolve(compose([f"benchmark={given}", "benchmark.level=3", "benchmark.samples=2"]))
        told = config.model_dump(mode="json")["benchmark"]
        assert (told["name"], told["level"], told["samples"]) == (name, 3, 2)
        assert RunConfig.resolve(config.model_dump(mode="json")).benchmark == config.benchmark
    assert {"quiz", "quiz-2"} < set(base.benchmark_names())
    assert str(origin_of(base.benchmark_class("quiz"))) == "quiz 1.0"


@pytest.mark.parametrize(("source", "entry", "said"), [
    (QUESTIONS.format(decorator='@register_benchmark("scenes")'), "bad_quiz", "the name is taken by tokcomp.benchmarks.scenes"),
    (QUESTIONS.format(decorator="").replace("def score", "def scores"), "bad_quiz:Questions", "does not define score"),
    ("class Questions: pass", "bad_quiz:Questions", "benchmark 'bad' is not a subclass"),
    ("1 / 0", "bad_quiz", "ZeroDivisionError"),
])  # fmt: skip
def test_a_broken_benchmark_disables_no_other(install: Install, source: str, entry: str, said: str) -> None:
    install("bad-quiz", {"bad_quiz.py": source}, {"tokcomp.benchmarks": {"bad": entry}})
    install("quiz", {"quiz.py": QUESTIONS.format(decorator="")}, {"tokcomp.benchmarks": {"quiz": "quiz:Questions"}})
    with pytest.warns(PluginWarning, match=rf"^plug-in 'bad' \({entry}, bad-quiz 1.0\) was left out: .*{said}"):
        assert {"quiz", "scenes"} <= set(base.benchmark_names())
