"""python train.py <recipe> [--preset NAME] [--flag value] · python train.py reproduce <section> [--preset NAME]"""

import sys

from nanoreason.__main__ import main

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
