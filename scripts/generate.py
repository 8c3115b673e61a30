#!/usr/bin/env python3
"""Write what is generated from the declarations: example configurations and reference pages.

scripts/generate.py            write them
scripts/generate.py --check    status 1 when one of them is not current, naming it
"""

from __future__ import annotations

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def main() -> int:
    from bi_performanced.config.documents import DOCUMENTS
    from bi_performanced.fronts.reference import commands

    stale = []
    for name, make in {**DOCUMENTS, "docs/commands.md": commands}.items():
        path = ROOT / name
        text = make()
        if not path.exists() or path.read_text(encoding="utf-8") != text:
            stale.append(name)
            if "--check" not in sys.argv:
                path.parent.mkdir(exist_ok=True)
                path.write_text(text, encoding="utf-8")
    verb = "is not current; run scripts/generate.py" if "--check" in sys.argv else "written"
    for name in stale:
        sys.stdout.write(f"{name} {verb}\n")
    return 1 if stale and "--check" in sys.argv else 0


if __name__ == "__main__":
    sys.exit(main())
