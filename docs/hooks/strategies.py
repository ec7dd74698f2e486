"""mkdocs hook: the gallery of strategies, one page for each, from the registries and the option files."""

from __future__ import annotations

import inspect
import re
from pathlib import Path
from typing import Any

import comparison
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

from tokcomp.catalog.ask import needs_text, type_text, without_cls
from tokcomp.experiment.paths import config_dir
from tokcomp.registry import REGISTRIES
from tokcomp.stages import Strategy

STAGES = {
    "vision": "shorten the image's tokens in the vision tower or around its projector",
    "prefill": "drop vision tokens between the language model's layers while the prompt is read",
    "cache": "evict entries of the key/value cache, once or after every step",
}
CAPTIONS = {
    "vision": "Merged patches have one tint per group, dropped ones are faded, key tokens have a star.",
    "prefill": "Patches that leave at the last cut are vermillion, those that left before are faded.",
    "cache": "The share of all layers' heads that hold each patch when the answer is done, from none (blue) to all (yellow).",
}
_BOUNDS = {"gt": ">", "ge": "≥", "lt": "<", "le": "≤", "min_length": "length ≥"}


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Fill the section `Strategies` of the navigation."""
    for entry in config.nav or []:
        if isinstance(entry, dict) and "Strategies" in entry:
            stages = [
                {stage: [{name: page_path(stage, name)} for name in registry]} for stage, registry in REGISTRIES.items()
            ]
            entry["Strategies"] = ["strategies/index.md", *stages]
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the generated pages."""
    files.append(File.generated(config, "strategies/index.md", content=overview(Path(config.docs_dir))))
    for stage, registry in REGISTRIES.items():
        for name in registry:
            pictures = Path(config.docs_dir) / "images" / "strategies"
            content = strategy_page(stage, name, registry[name], pictures)
            files.append(File.generated(config, page_path(stage, name), content=content))
    return files


def page_path(stage: str, name: str) -> str:
    return f"strategies/{stage}-{name}.md"


def overview(docs: Path) -> str:
    """The gallery: all strategies with what they keep of the same scenes, and the presets."""
    pictures = docs / "images" / "strategies"
    found = comparison.read(docs / "results" / "library")
    lines = ["---", "hide: [toc]", "---", "", "# Strategies", ""]
    lines += ["Any mix of one strategy per stage is a pipeline; a stage may be `none`. Every strategy was shown the same three "
              "scenes:", "", *_picture(pictures / "scenes-strip.webp", "Three scenes as the model sees them"), ""]  # fmt: skip
    lines += ["What it *costs* is taken from [the library compared](../library.md), at a budget of 25 %: accuracy on the "
              "embedded model, and what is left of the dense model's FLOPs and cache. Strategies without figures have no budget "
              "there.", ""]  # fmt: skip
    for stage, registry in REGISTRIES.items():
        lines += [
            f"## {stage}",
            "",
            f"These {STAGES[stage]}. {CAPTIONS[stage]}",
            "",
            '<div class="gallery" markdown>',
            "",
        ]
        for name in registry:
            lines += _card(stage, name, registry[name], pictures, found)
        lines += ["</div>", ""]
    lines += ["## Presets", "", "A preset selects an option for each stage; what you write after it wins.", ""]
    lines += ["| preset | what it is |", "|---|---|"]
    for path in sorted((config_dir() / "preset").glob("*.yaml")):
        lines.append(f"| `preset={path.stem}` | {_linked(_comment(path))} |")
    return "\n".join(lines) + "\n"


def _card(stage: str, name: str, cls: type[Strategy], pictures: Path, found: dict[str, comparison.Lines]) -> list[str]:
    entry = found[stage].get(name, {}).get("25")
    facts = [f"**Needs** {needs(cls)}", f"**Paper** {_linked(cls.paper) or 'a control or a combinator'}"]
    if entry is not None:
        facts.append(f"**Cost** {comparison.at_a_glance(entry)}")
    return [
        '<div class="card" markdown>', "", f"**[`{name}`]({stage}-{name}.md)**", "",
        *_picture(pictures / f"{stage}-{name}-strip.webp", f"What {name} keeps of three scenes"), "",
        _first_sentence(cls), "", "<br>".join(facts), "", "</div>", "",
    ]  # fmt: skip


def _picture(path: Path, text: str, look: str = "") -> list[str]:
    return [f"![{text}](../images/strategies/{path.name}){{ {look} loading=lazy }}"] if path.is_file() else []


def strategy_page(stage: str, name: str, cls: type[Strategy], pictures: Path) -> str:
    """The page of one strategy."""
    text, described = _docstring(cls)
    facts = [f"**Stage** {stage}", f"**Needs** {needs(cls)}"]
    if told := without_cls(cls):
        facts.append(f"**Without a CLS token** {told}")
    if cls.paper:
        facts.append(f"**Paper** {_linked(cls.paper)}")
    lines = [f"# {stage}: {name}", "", " · ".join(facts), "", text, ""]
    if shown := _picture(pictures / f"{stage}-{name}.webp", f"What {name} leaves of three scenes", ".wide"):
        lines += [*shown, "", f"*Above: what the model sees. Below: {CAPTIONS[stage]}*", ""]
    lines += ["## Fields", "", "| field | type | default | meaning |", "|---|---|---|---|"]
    for field, info in cls.model_fields.items():
        default = "(must be given)" if info.is_required() else f"`{_yaml(info.get_default(call_default_factory=True))}`"
        meaning = described.get(field) or info.description or ""
        lines.append(f"| `{field}` | {_cell(_bounded(info))} | {default} | {_cell(_linked(meaning))} |")
    lines += ["", "## Options", ""]
    for path in sorted((config_dir() / stage).glob(f"{name}*.yaml")):
        if path.stem == name or path.stem.startswith(f"{name}-"):
            lines += [f"`{stage}={path.stem}`", "", "```yaml", path.read_text(encoding="utf-8").rstrip(), "```", ""]
    return "\n".join([*lines, f"`tokcomp show {stage}/{name}` tells the same in a terminal.", ""])


def needs(cls: type[Strategy]) -> str:
    """The signals that a strategy reads, beyond the tokens."""
    return needs_text(cls, "`{}`") or "nothing beyond the tokens"


def _docstring(cls: type[Strategy]) -> tuple[str, dict[str, str]]:
    """The text of a docstring as Markdown, and what it says about each field."""
    text, _, attributes = inspect.cleandoc(cls.__doc__ or "").partition("\nAttributes:\n")
    described: dict[str, str] = {}
    for match in re.finditer(r"^    (\w[\w, ]*): (.+(?:\n {8}.+)*)", attributes, re.MULTILINE):
        for field in match[1].split(", "):
            described[field] = _markdown(" ".join(match[2].split()))
    return _linked(_markdown(text.strip())), described


def _markdown(text: str) -> str:
    # Roles name the object; double backticks are the docstrings' way to write code.
    text = re.sub(r":\w+:`~?(?:[\w.]*\.)?(\w+)`", r"`\1`", text)
    return re.sub(r"``([^`]+)``", r"`\1`", text)


def _linked(text: str) -> str:
    return re.sub(r"(?i)arxiv\s+(\d{4}\.\d{4,5})", r"[arXiv \1](https://arxiv.org/abs/\1)", text)


def _first_sentence(cls: type[Strategy]) -> str:
    text = " ".join(_markdown(inspect.cleandoc(cls.__doc__ or "")).split("\n\n")[0].split())
    return _cell(text.split(". ")[0].rstrip(".") + ".")


def _comment(path: Path) -> str:
    lines = (line[1:].strip() for line in path.read_text(encoding="utf-8").splitlines() if line.startswith("#"))
    return " ".join(line for line in lines if not line.startswith(("@", "tokcomp run")))


def _bounded(info: Any) -> str:
    found = [
        f"{sign} {getattr(item, name)}" for item in info.metadata for name, sign in _BOUNDS.items()
        if getattr(item, name, None) is not None
    ]  # fmt: skip
    kind = type_text(info.annotation)
    return f"`{kind}`" + (f", {', '.join(found)}" if found else "")


def _yaml(value: Any) -> str:
    return "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)


def _cell(text: str) -> str:
    """For a table: a bar outside of code would end the cell."""
    return "".join(part if part.startswith("`") else part.replace("|", "\\|") for part in re.split(r"(`[^`]*`)", text))
