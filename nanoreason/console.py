"""Printing that ends no run: a character that the console lacks, a reader that left (`| head -1`), a full disk.

A run's results are in its folder; what is printed is for whoever looks on. So what cannot be encoded is replaced, and
when a stream takes nothing any more, the rest of what is printed there goes nowhere.
"""

from __future__ import annotations

import contextlib
import errno
import os
import sys
from collections.abc import Iterator
from typing import Any, TextIO

LEFT = (errno.EPIPE, errno.EINVAL)  # a pipe without a reader (Windows has the second): as good as closed on purpose


class Console:
    """A text stream that never raises from a write or a flush; everything else is that of the stream inside.

    `error` is the first OSError of it, None as long as all went well.
    """

    def __init__(self, stream: TextIO):
        self._wrapped = stream
        self.error: OSError | None = None

    def __getattr__(self, name: str) -> Any:
        return getattr(self._wrapped, name)

    def write(self, text: str) -> int:
        try:
            self._wrapped.write(text)
        except UnicodeEncodeError:
            encoding = self._wrapped.encoding
            self.write(text.encode(encoding, "replace").decode(encoding))
        except (OSError, ValueError) as error:  # ValueError: somebody has closed it
            self._lost(error)
        return len(text)

    def flush(self) -> None:
        try:
            self._wrapped.flush()
        except (OSError, ValueError) as error:
            self._lost(error)

    def _lost(self, error: Exception) -> None:
        """From now on the stream's descriptor is that of the null device: nobody fails on it again, at exit neither."""
        if self.error is not None or not isinstance(error, OSError):
            return
        self.error = error
        with contextlib.suppress(OSError, ValueError, AttributeError):
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, self._wrapped.fileno())
            os.close(nowhere)
            self._wrapped.flush()  # what was still to be written
        if error.errno not in LEFT and sys.stderr is not self:
            print(f"the output cannot be written ({error.strerror or error}): going on without it", file=sys.stderr)


def install() -> None:
    """Make stdout and stderr of this process such consoles. A stream that was closed before it began is the null device
    (opened in the order of their numbers, so that no file of the run becomes what others know as stdout)."""
    if sys.stdin is None:
        sys.stdin = open(os.devnull, encoding="utf-8")
    elif hasattr(sys.stdin, "reconfigure"):
        sys.stdin.reconfigure(errors="replace")  # what is typed in another encoding is a typing error, and no more
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:
            stream = open(os.devnull, "w", encoding="utf-8")
        if not isinstance(stream, Console):
            setattr(sys, name, Console(stream))


@contextlib.contextmanager
def steady() -> Iterator[Console]:
    """`install` for a while; yields stdout. All that was printed is out at the end, or is known not to be."""
    before = sys.stdin, sys.stdout, sys.stderr
    install()
    out, errors = sys.stdout, sys.stderr
    try:
        yield out
    finally:
        out.flush()
        errors.flush()
        sys.stdin, sys.stdout, sys.stderr = before
