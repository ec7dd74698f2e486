"""``python -m tokcomp.catalog``: write what the built-in strategies are, after one of them has changed."""

from __future__ import annotations

import json
import sys

from tokcomp.catalog import FILE, sources_digest
from tokcomp.catalog.ask import ask_built_in


def main() -> int:
    found = {"digest": sources_digest(), "entries": [one.data() for one in ask_built_in()]}
    FILE.write_text(json.dumps(found, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    sys.stdout.write(f"{FILE}: {len(found['entries'])} strategies\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
