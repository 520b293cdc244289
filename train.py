"""python train.py <recipe> [--preset ...] [--flag value]   ·   python train.py reproduce <section> [--preset tiny|cpu|gpu]"""

import sys

from nanoreason.__main__ import main

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
