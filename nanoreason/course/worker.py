"""The process in which a student's code runs: it is asked for values, and knows no right ones.

    python -I worker.py TREE READ WRITE SECONDS MEGABYTES      READ, WRITE: file descriptors, one JSON object a line

TREE holds the instructor's package with the student's regions in it, and `exercise.py`, the functions that are called.
Nothing of the grader is in this process: no check, no expected value, no result. What the code can reach is taken away
as far as the system allows, before the first call:

    limits    CPU seconds, memory, no file may grow by a byte, no further processes, few open files
    rights    as root: the user nobody, and a network of its own without any device
    a hook    that refuses to open files but the interpreter's own for reading, and to start, connect or remove things

The hook is no wall (code in C does not ask it), the limits are the system's. On a machine that matters, grade in a
container that is thrown away.
"""

import contextlib
import importlib
import json
import os
import sys

NOBODY = 65534
REFUSED = (
    "subprocess.", "socket.", "ctypes.", "shutil.", "ftplib.", "http.", "urllib.", "winreg.", "pty.", "resource.",
    "signal.pthread_kill", "sys.addaudithook", "sys.settrace", "sys.setprofile", "webbrowser.", "sqlite3.",
)  # fmt: skip
REFUSED_OS = (
    "exec", "fork", "forkpty", "kill", "killpg", "posix_spawn", "spawn", "startfile", "system", "remove", "rename",
    "rmdir", "mkdir", "link", "symlink", "truncate", "chmod", "chown", "unlink", "putenv", "unsetenv", "setxattr",
    "chflags", "lockf",
)  # fmt: skip
# What answers import, and what libraries import late: as nobody the interpreter's files may be out of reach.
USUAL = (
    "bisect", "collections", "copy", "dataclasses", "decimal", "enum", "fractions", "functools", "heapq", "itertools",
    "math", "numbers", "operator", "random", "re", "secrets", "statistics", "string", "textwrap", "time", "typing",
    "numpy.random", "torch.nn.functional",
)  # fmt: skip
MOST_ERROR = 400  # characters


def limit(seconds: int, megabytes: int) -> None:
    """What the system enforces; not every system can."""
    try:
        import resource
    except ImportError:
        return

    def lower(name: str, value: int) -> None:
        with contextlib.suppress(AttributeError, ValueError, OSError):
            resource.setrlimit(getattr(resource, name), (value, value))

    lower("RLIMIT_CPU", seconds)
    lower("RLIMIT_FSIZE", 0)
    lower("RLIMIT_CORE", 0)
    lower("RLIMIT_NOFILE", 64)
    with contextlib.suppress(OSError), open("/proc/self/statm") as file:  # Linux: on top of what is mapped already
        lower("RLIMIT_AS", int(file.read().split()[0]) * resource.getpagesize() + megabytes * 2**20)
    lower("RLIMIT_NPROC", 0 if os.getuid() else 1)


def give_up_rights() -> None:
    """As root: no network, then nobody's rights."""
    if not hasattr(os, "getuid") or os.getuid():
        return
    with contextlib.suppress(Exception):
        import ctypes

        ctypes.CDLL(None, use_errno=True).unshare(0x40000000)  # CLONE_NEWNET
    os.setgroups([])
    os.setgid(NOBODY)
    os.setuid(NOBODY)


def refuse(tree: str, roots: tuple[str, ...]) -> None:
    """From now on: reading in the tree and below `roots`, where no other copy of the package lies, and nothing else."""

    def may_be_read(path: str) -> bool:
        return path.startswith(tree) or (path.startswith(roots) and f"{os.sep}nanoreason{os.sep}" not in path)

    def hook(event: str, arguments: tuple) -> None:
        if event == "open":
            path, mode, flags = arguments
            writes = isinstance(flags, int) and flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC)
            if isinstance(path, int) or writes or not may_be_read(os.path.realpath(os.fsdecode(path))):
                raise PermissionError(f"an answer opens no files ({str(path)[-60:]})")
        elif event.startswith(REFUSED) or (event.startswith("os.") and event[3:].startswith(REFUSED_OS)):
            raise PermissionError(f"an answer may not do this ({event})")

    sys.addaudithook(hook)


def main() -> None:
    tree, read, write, seconds, megabytes = sys.argv[1], *map(int, sys.argv[2:6])
    sys.path.insert(0, tree)
    sys.dont_write_bytecode = True
    requests, replies = os.fdopen(read, "r", encoding="utf-8"), os.fdopen(write, "w", encoding="utf-8")
    import torch

    torch.set_num_threads(1)
    calls = {call.__name__: call for call in importlib.import_module("exercise").CALLS}
    for name in (*USUAL, *json.loads(requests.readline())["modules"]):  # what is called, while files may be read
        importlib.import_module(name)
    roots = {os.path.realpath(path) + os.sep for path in (sys.prefix, sys.base_prefix, os.path.dirname(os.__file__))}
    give_up_rights()
    limit(seconds, megabytes)
    refuse(os.path.realpath(tree) + os.sep, tuple(roots))
    dumps = json.dumps
    replies.write('{"ready": true}\n')
    replies.flush()
    for line in requests:
        number, name, arguments, named = json.loads(line)
        try:
            said = dumps({"number": number, "value": calls[name](*arguments, **named)})
        except BaseException as error:  # whatever it raises is its answer
            frames, place = [], error.__traceback__
            while place is not None:
                frames.append(f"line {place.tb_lineno} of {os.path.basename(place.tb_frame.f_code.co_filename)}")
                place = place.tb_next
            error = f"{type(error).__name__}: {error}"[:MOST_ERROR]
            said = dumps({"number": number, "error": error, "where": frames[-1]})
        replies.write(said + "\n")
        replies.flush()


if __name__ == "__main__":
    main()
