"""python train.py <recipe> [--preset NAME] [--flag value] · python train.py reproduce <section> [--preset NAME]"""

import signal
import sys

if __name__ == "__main__" and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # Ctrl-C while this is imported is no traceback
    from nanoreason.__main__ import main

    signal.signal(signal.SIGINT, signal.default_int_handler)
else:
    from nanoreason.__main__ import main

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
