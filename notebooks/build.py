"""python notebooks/build.py: makes every .ipynb of this folder from the .py of the same name.

    # %% [markdown]                    a cell of text, its lines behind "# "
    # %%                               a cell of code
    from first_cell import ROOT, ...   becomes the contents of first_cell.py: a notebook must work alone, as in Colab

The sources are plain Python: `python notebooks/star.py` runs one, and a debugger stops in it. The notebooks have no
outputs. `--check` writes nothing and names the notebooks that are not equal to their sources.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

FOLDER = Path(__file__).parent
FIRST = "from first_cell import "
MARK, TEXT_MARK = "# %%", "# %% [markdown]"


def sources() -> list[Path]:
    """The percent files, in the order of their names."""
    return [path for path in sorted(FOLDER.glob("*.py")) if path.read_text(encoding="utf-8").startswith(MARK)]


def cells(path: Path) -> list[tuple[str, str]]:
    """(markdown or code, text) of each cell; ValueError names the line that is in none."""
    found: list[tuple[str, list[str]]] = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        if line.startswith(MARK):
            if line not in (MARK, TEXT_MARK):
                raise ValueError(f"{path.name}, line {number}: a cell begins with {MARK!r} or {TEXT_MARK!r} alone")
            found.append(("markdown" if line == TEXT_MARK else "code", []))
        elif not found:
            raise ValueError(f"{path.name}, line {number}: it stands before the first {MARK!r}")
        elif found[-1][0] == "code":
            found[-1][1].append(line)
        elif line and line != "#" and not line.startswith("# "):
            raise ValueError(f"{path.name}, line {number}: a line of text begins with '# '")
        else:
            found[-1][1].append(line[2:])
    return [(kind, expanded("\n".join(lines).strip("\n"))) for kind, lines in found]


def expanded(text: str) -> str:
    """The import of the first cell becomes what it imports; all else stays."""
    if not text.startswith(FIRST):
        return text
    first, _, rest = text.partition("\n")
    return "\n\n".join(filter(None, [(FOLDER / "first_cell.py").read_text(encoding="utf-8").strip(), rest.strip()]))


def notebook(path: Path) -> str:
    """The .ipynb of a source as text (nbformat 4.5), the same every time."""
    made = []
    for number, (kind, text) in enumerate(cells(path)):
        cell = {"cell_type": kind, "id": f"{path.stem}-{number}", "metadata": {}, "source": text.splitlines(True)}
        made.append(cell | ({"execution_count": None, "outputs": []} if kind == "code" else {}))
    kernel = {"display_name": "Python 3", "language": "python", "name": "python3"}
    whole = {"cells": made, "metadata": {"kernelspec": kernel, "language_info": {"name": "python"}},
             "nbformat": 4, "nbformat_minor": 5}  # fmt: skip
    return json.dumps(whole, indent=1, ensure_ascii=False) + "\n"


def main(flags: list[str]) -> int:
    if flags not in ([], ["--check"]):
        print(__doc__, file=sys.stderr)
        return 2
    made = {path.with_suffix(".ipynb"): notebook(path) for path in sources()}
    old = {path: path.read_text(encoding="utf-8") for path in FOLDER.glob("*.ipynb")}
    stale = sorted(path for path in made.keys() | old.keys() if made.get(path) != old.get(path))
    for path in stale:
        if flags:
            print(f"{path.name} differs from its source: run `make notebooks`")
        elif path in made:
            path.write_text(made[path], encoding="utf-8", newline="\n")
            print(f"wrote {path.name}")
        else:
            print(f"{path.name} has no source: delete it, or write {path.stem}.py")
    return 1 if stale and flags else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
