"""Rules of the house that a machine can hold: import directions, file and function lengths, names."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "tokcomp"
FILES = sorted(PACKAGE.rglob("*.py"))

CORE = {
    "tokcomp.deferred",
    "tokcomp.deprecation",
    "tokcomp.errors",
    "tokcomp.signals",
    "tokcomp.plugin_signals",
    "tokcomp.selection",
    "tokcomp.views",
    "tokcomp.vision_view",
    "tokcomp.cache_view",
    "tokcomp.types",
    "tokcomp.budget",
    "tokcomp.layers",
}
STRATEGY_MAY = CORE | {
    "tokcomp.stages",
    "tokcomp.one_cut",
    "tokcomp.scored",
    "tokcomp.registry",
    "tokcomp.specs",
    "tokcomp.ops",
}
# Folder or module -> what it may import of tokcomp. Longest match wins.
MAY_IMPORT = {
    "tokcomp.errors": set(),
    "tokcomp.signals": set(),
    "tokcomp.deferred": set(),
    "tokcomp.selection": {"tokcomp.deferred"},
    "tokcomp.budget": {"tokcomp.errors"},
    "tokcomp.layers": {"tokcomp.errors"},
    "tokcomp.plugin_signals": {"tokcomp.errors", "tokcomp.signals"},
    "tokcomp.views": {"tokcomp.deferred", "tokcomp.signals", "tokcomp.plugin_signals"},
    "tokcomp.vision_view": {"tokcomp.signals", "tokcomp.views"},
    "tokcomp.cache_view": {"tokcomp.signals", "tokcomp.plugin_signals"},
    "tokcomp.types": {
        "tokcomp.signals",
        "tokcomp.selection",
        "tokcomp.views",
        "tokcomp.vision_view",
        "tokcomp.cache_view",
    },
    "tokcomp.ops": CORE | {"tokcomp.ops"},
    "tokcomp.stages": CORE,
    "tokcomp.one_cut": CORE | {"tokcomp.stages"},
    "tokcomp.scored": CORE | {"tokcomp.stages"},
    "tokcomp.plugins": {"tokcomp.errors"},
    "tokcomp.registry": CORE | {"tokcomp.stages", "tokcomp.plugins"},
    "tokcomp.deprecation": {"tokcomp.errors"},
    "tokcomp.specs": CORE | {"tokcomp.stages", "tokcomp.registry", "tokcomp.plugins"},
    "tokcomp.vision": STRATEGY_MAY | {"tokcomp.vision"},
    "tokcomp.prefill": STRATEGY_MAY | {"tokcomp.prefill"},
    "tokcomp.cache": STRATEGY_MAY | {"tokcomp.cache"},
    "tokcomp.models": {"tokcomp.errors", "tokcomp.plugins", "tokcomp.models"},
    "tokcomp.pipeline": CORE
    | {"tokcomp.stages", "tokcomp.specs", "tokcomp.runner.session", "tokcomp.experiment.presets"},
    "tokcomp.runner": CORE | {"tokcomp.stages", "tokcomp.ops", "tokcomp.runner", "tokcomp.models.adapter"},
    "tokcomp.embedded": {"tokcomp.embedded"},
}


def module_name(path: Path) -> str:
    parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imports(path: Path) -> set[str]:
    """Modules of tokcomp that a file imports at run time, at any depth of its code."""
    found: set[str] = set()
    tree = ast.parse(path.read_text())
    typing_only = [
        node for node in ast.walk(tree) if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test)
    ]
    skipped = {id(child) for node in typing_only for child in ast.walk(node)}
    for node in ast.walk(tree):
        if id(node) in skipped:
            continue
        if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == "tokcomp":
            found.add(node.module)
        elif isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names if alias.name.split(".")[0] == "tokcomp")
    return found


def inside(module: str, roots: set[str]) -> bool:
    return any(module == root or module.startswith(root + ".") for root in roots)


@pytest.mark.parametrize("path", FILES, ids=module_name)
def test_imports_point_one_way(path: Path) -> None:
    name = module_name(path)
    rule = max((root for root in MAY_IMPORT if inside(name, {root})), key=len, default=None)
    if rule is None:
        assert not name.startswith("tokcomp.runner")
        return
    wrong = {module for module in imports(path) if not inside(module, MAY_IMPORT[rule])}
    assert not wrong, f"{name} must not import {', '.join(sorted(wrong))}"


def test_only_model_files_name_model_classes() -> None:
    for path in FILES:
        if path.parent.name == "models" or "embedded" in path.parts or "shapes" in path.parts:
            continue
        names = {node.id for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Name)}
        wrong = {name for name in names if name.endswith(("ForConditionalGeneration", "ForCausalLM"))}
        assert not wrong, f"{path}: {wrong} belongs into tokcomp/models/"


@pytest.mark.parametrize("path", FILES, ids=module_name)
def test_files_and_functions_are_short(path: Path) -> None:
    text = path.read_text()
    assert text.count("\n") <= 280, f"{path} has {text.count(chr(10))} lines"
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef):
            length = (
                (node.end_lineno or node.lineno) - node.lineno + 1 - len((ast.get_docstring(node) or "").splitlines())
            )
            assert length <= 45, f"{path}:{node.lineno} {node.name} has {length} lines beside its docstring"


def test_no_grab_bags() -> None:
    assert not [path for path in FILES if path.stem in ("utils", "helpers", "common", "misc")]
