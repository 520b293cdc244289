"""Whether the demo's claims hold on the kernels of other processors, with one thread and with two: a table.

    python benchmarks/demo_portable.py [--sections star r1] [--seeds 5] [--out runs/portable]

`ATEN_CPU_CAPABILITY`, `ONEDNN_MAX_CPU_ISA` and `MKL_ENABLE_INSTRUCTIONS` make one machine round as another does. A run
that is there already is not run again.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path

AVX2 = {"ATEN_CPU_CAPABILITY": "avx2", "ONEDNN_MAX_CPU_ISA": "AVX2", "MKL_ENABLE_INSTRUCTIONS": "AVX2"}
SSE = {"ATEN_CPU_CAPABILITY": "default", "ONEDNN_MAX_CPU_ISA": "SSE41", "MKL_ENABLE_INSTRUCTIONS": "SSE4_2"}
KERNELS = {"own": {}, "avx2": AVX2, "default": SSE}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--sections", nargs="+", default=["star", "r1"])
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--kernels", nargs="+", default=list(KERNELS))
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--out", type=Path, default=Path("runs/portable"))
    flags = parser.parse_args()
    for section in flags.sections:
        rows = []
        for kernels in flags.kernels:
            for threads in flags.threads:
                out = flags.out / f"{section}-{kernels}-{threads}"
                command = [sys.executable, "train.py", "reproduce", section, "--preset", "demo", "--seeds",
                           str(flags.seeds), "--threads", str(threads), "--out", str(out)]  # fmt: skip
                if threads > 1:
                    command += ["--workers", "1"]
                environment = os.environ | KERNELS[kernels]
                subprocess.run(command, env=environment, check=True, stdout=subprocess.DEVNULL)
                rows.append((kernels, threads, json.loads((out / "summary.json").read_text())))
        names = ["kernels", "threads", *(claim["name"] for claim in rows[0][2]["claims"]), "seconds"]
        print("\n| " + " | ".join(names) + " |\n" + "|---" * len(names) + "|")
        for kernels, threads, summary in rows:
            cells = []
            for claim in summary["claims"]:
                values = " ".join(f"{value:.2f}" for value in claim["values"].values())
                cells.append(f"{'holds' if claim['passed'] else 'FAILS'}: {values}")
            print(f"| {kernels} | {threads} | " + " | ".join(cells) + f" | {summary['seconds']:.0f} |", flush=True)


if __name__ == "__main__":
    main()
