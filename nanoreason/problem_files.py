"""Problems from the public files of a data set: JSONL, JSON or Parquet in a folder, in the splits that their names say.

    FOLDER/train.jsonl  FOLDER/main/test-00000-of-00001.parquet  FOLDER/test/algebra/17.json

A file belongs to the split "train" or "test" whose word stands in its path below the folder; others are left alone.
"""

from __future__ import annotations

import functools
import json
import re
from pathlib import Path
from typing import Any

from nanoreason.run import read_file, read_json

SPLITS = ("train", "test")
KINDS = (".jsonl", ".json", ".parquet")


@functools.lru_cache(maxsize=8)
def read_splits(folder: str) -> dict[str, list[tuple[str, dict[str, Any]]]]:
    """{split: (where it stands, row) of all its files, in the order of their names}; ValueError names what is wrong.

    Read once per process: a folder whose files change in between is still what it was.
    """
    root = Path(folder)
    if not folder or not root.is_dir():  # "" would be the folder that one happens to be in
        raise ValueError(f"files: {folder or repr('')} is no folder: it must hold train and test files of problems")
    found: dict[str, list[tuple[str, dict[str, Any]]]] = {split: [] for split in SPLITS}
    for path in sorted(path for path in root.rglob("*") if path.suffix in KINDS and path.is_file()):
        words = re.split(r"[^a-z]+", path.relative_to(root).as_posix().lower())
        splits = [split for split in SPLITS if split in words]
        if len(splits) == 2:
            raise ValueError(f"{path}: its name says both train and test")
        if splits:
            found[splits[0]] += [(f"{path}, row {number}", row) for number, row in enumerate(rows_of(path), 1)]
    if not any(found.values()):
        kinds = ", ".join(KINDS)
        raise ValueError(f"files: {folder} holds no problems: no file of {kinds} with train or test in its name")
    return found


def rows_of(path: Path) -> list[dict[str, Any]]:
    """The rows of one file."""
    if path.suffix == ".parquet":
        return parquet_rows(path)
    if path.suffix == ".json":
        return [read_json(path)]
    try:
        lines = read_file(path).decode("utf-8-sig").split("\n")
    except UnicodeDecodeError:
        raise ValueError(f"{path} is not UTF-8 text: the file is damaged") from None
    rows = []
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError):
            row = None
        if not isinstance(row, dict):
            raise ValueError(f"{path}, line {number} is no JSON object: the file is damaged")
        rows.append(row)
    return rows


def parquet_rows(path: Path) -> list[dict[str, Any]]:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError:
        raise ValueError(
            f"{path} is a Parquet file, and pyarrow is not installed: pip install pyarrow, or convert it to JSONL"
        ) from None
    try:
        return pyarrow.parquet.read_table(path).to_pylist()
    except (pyarrow.ArrowException, OSError) as error:
        raise ValueError(f"{path} is not a readable Parquet file ({' '.join(str(error).split())[:120]})") from None


def text_of(row: dict[str, Any], name: str, where: str) -> str:
    """The text in a field of a row; ValueError says where it is missing."""
    value = row.get(name)
    if not isinstance(value, str) or not value.strip():
        has = ", ".join(sorted(map(str, row))) or "nothing"
        raise ValueError(f"{where} has no text {name!r} (it has {has}): it is another data set's")
    return value.strip()
