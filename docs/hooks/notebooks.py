"""mkdocs hook: the notebooks of `examples/` as pages, with the outputs that were committed, and a page of the scripts there;
nothing is executed here."""

from __future__ import annotations

import ast
import base64
import json
from pathlib import Path
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

SECTION = "Notebooks and scripts"
SCRIPTS = "notebooks/scripts.md"


def found(config: MkDocsConfig) -> list[Path]:
    return sorted((Path(config.docs_dir).parent / "examples").glob("*.ipynb"))


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Fill the section `Notebooks`, wherever the navigation has it."""
    _fill(config.nav or [], [*(f"notebooks/{path.stem}.md" for path in found(config)), SCRIPTS])
    return config


def _fill(entries: list[Any], pages: list[str]) -> None:
    for entry in entries:
        for title, inside in entry.items() if isinstance(entry, dict) else ():
            if title == SECTION:
                entry[title] = pages
            elif isinstance(inside, list):
                _fill(inside, pages)


def on_files(files: Files, config: MkDocsConfig) -> Files:
    files.append(File.generated(config, SCRIPTS, content=scripts(Path(config.docs_dir).parent / "examples")))
    for path in found(config):
        text, pictures = as_markdown(json.loads(path.read_text(encoding="utf-8")), path.stem)
        files.append(File.generated(config, f"notebooks/{path.stem}.md", content=text))
        for name, picture in pictures.items():
            files.append(File.generated(config, f"notebooks/{name}", content=picture))
    return files


def scripts(folder: Path) -> str:
    """All scripts of a folder; the first line of each tells what it shows."""
    lines = [
        "# Scripts",
        "",
        "The scripts of `examples/`, each a use of tokcomp in a few lines; tests run all of them.",
    ]
    for path in sorted(folder.glob("*.py")):
        source = path.read_text(encoding="utf-8")
        told = (ast.get_docstring(ast.parse(source)) or path.stem).splitlines()[0]
        title, _, rest = told.partition(": ")
        lines += ["", f"## {title.rstrip('.')}", ""] + ([f"{rest[0].upper()}{rest[1:]}", ""] if rest else [])
        lines += [f"`examples/{path.name}`", "", "```python", source.rstrip(), "```"]
    return "\n".join([*lines, ""])


def as_markdown(notebook: dict[str, Any], name: str) -> tuple[str, dict[str, bytes]]:
    """The page, and the pictures that it shows by their file names."""
    parts: list[str] = []
    pictures: dict[str, bytes] = {}
    for cell in notebook["cells"]:
        source = "".join(cell["source"])
        if cell["cell_type"] == "markdown":
            parts.append(source)
            continue
        parts.append(f"```python\n{source}\n```")
        for output in cell["outputs"]:
            data = output.get("data", {})
            if "image/png" in data:
                file = f"{name}-{len(pictures)}.png"
                pictures[file] = base64.b64decode(data["image/png"])
                parts.append(f"![Output of the cell above]({file}){{ .output loading=lazy }}")
            elif text := "".join(output.get("text", data.get("text/plain", ""))).rstrip():
                parts.append(f"```text\n{text}\n```")
    note = f"*This is `examples/{name}.ipynb`, shown with the outputs of its last execution by `docs/notebooks.py`.*"
    parts.insert(1, note)
    return "\n\n".join(parts) + "\n", pictures
