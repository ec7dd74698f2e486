"""Executes the notebooks of `examples/` where they lie, so that what they show was made by the code of today.

    python docs/notebooks.py [NAME …]

Needs the extra `docs`. What differs from machine to machine (times, versions, paths) is left out of the files.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import nbformat
from nbclient import NotebookClient

ROOT = Path(__file__).resolve().parent.parent
NOTEBOOKS = ROOT / "examples"


def main() -> int:
    names = sys.argv[1:] or [path.stem for path in sorted(NOTEBOOKS.glob("*.ipynb"))]
    for name in names:
        path = NOTEBOOKS / f"{name}.ipynb"
        nbformat.write(executed(path), path)
        sys.stderr.write(f"{path.relative_to(ROOT)}\n")
    return 0


def executed(path: Path, timeout: int = 600) -> Any:
    """The notebook with fresh outputs; a cell that fails raises."""
    notebook = nbformat.read(path, as_version=4)
    NotebookClient(
        notebook, timeout=timeout, kernel_name="python3", resources={"metadata": {"path": str(ROOT)}}
    ).execute()
    notebook.metadata = {"kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"}}
    for number, cell in enumerate(notebook.cells):
        cell.id, cell.metadata = f"cell-{number}", {}
        if cell.cell_type == "code":  # progress bars and warnings tell of this machine
            cell.outputs = [output for output in cell.outputs if output.get("name") != "stderr"]
    return notebook


if __name__ == "__main__":
    sys.exit(main())
