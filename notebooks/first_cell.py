# Finds the package: here, in a folder above, or installed. If it is nowhere (Colab), it is fetched from REPOSITORY.
REPOSITORY = ""  # <- INSTRUCTOR: the git address of your copy, set in notebooks/first_cell.py, then `make notebooks`

import importlib.util
import os
import subprocess
import sys
import tempfile
from pathlib import Path


def package_root():
    """The folder that holds nanoreason/ and data/, or None."""
    spec = importlib.util.find_spec("nanoreason")
    installed = [Path(spec.origin).parents[1]] if spec and spec.origin else []
    near = [Path.cwd(), *Path.cwd().parents, Path(sys.path[0] or ".").resolve().parent, Path("nanoreason-source")]
    whole = [folder for folder in near + installed if (folder / "nanoreason" / "__init__.py").exists()]
    return next((folder.resolve() for folder in whole if (folder / "data" / "results").exists()), None)


if package_root() is None and not REPOSITORY:
    raise FileNotFoundError("nanoreason is not here: open the notebook inside the repository, or set REPOSITORY above")
if package_root() is None:
    subprocess.run(["git", "clone", "--depth", "1", REPOSITORY, "nanoreason-source"], check=True)
ROOT = package_root()
if any(importlib.util.find_spec(name) is None for name in ("torch", "numpy", "tokenizers", "safetensors", "tqdm")):
    subprocess.run([sys.executable, "-m", "pip", "install", "--quiet", "-e", str(ROOT)], check=True)
sys.path.insert(0, str(ROOT))

import torch

torch.set_num_threads(1)  # as fast as more for models this small, and the same numbers everywhere
RUNS = Path(tempfile.mkdtemp(prefix="nanoreason-"))  # every run of this notebook is written below this folder
QUICK = "NANOREASON_QUICK" in os.environ  # the tests run every cell, with fewer steps
