"""python bundle.py RUN --out run.zip: a run folder in one file, to be handed in.

In it: config.json, metrics.jsonl, samples.jsonl, the policy, and the hash of each.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
import zipfile
from pathlib import Path

MOST_BYTES = 32 << 20  # of a file
LOGS = ("config.json", "metrics.jsonl", "samples.jsonl")
POLICY = ("config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json")
FILES = (*LOGS, *(f"policy/{name}" for name in POLICY))  # of a bundle


def bundle(run: Path, out: Path) -> str:
    """Writes the zip file; returns what is in it. ValueError where the folder holds no finished run."""
    if not (run / "policy").is_dir():
        raise ValueError(f"{run} holds no policy: is it the folder of a run that has ended?")
    contents = {}
    for name in FILES:
        if not (run / name).is_file():
            raise ValueError(f"{run / name} is missing")
        contents[name] = (run / name).read_bytes()
        if len(contents[name]) > MOST_BYTES:
            raise ValueError(f"{run / name} is larger than {MOST_BYTES >> 20} MB")
    hashes = {name: hashlib.blake2b(raw, digest_size=16).hexdigest() for name, raw in contents.items()}
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, raw in contents.items():
            archive.writestr(name, raw)
        archive.writestr("bundle.json", json.dumps({"hashes": hashes}, indent=2))
    return f"{out}: {len(contents)} files, {out.stat().st_size / 2**20:.1f} MB"


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    flags = parser.parse_args()
    try:
        print(bundle(flags.run, flags.out))
    except (ValueError, OSError) as error:
        sys.exit(f"bundle.py: {error}")
