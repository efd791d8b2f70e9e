"""Being stopped from outside: SIGTERM and a closed terminal stop a run as Ctrl-C does; all three leave word of it."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

SIGNALS = [getattr(signal, name) for name in ("SIGTERM", "SIGHUP") if hasattr(signal, name)]


class Stopped(BaseException):
    """This process was asked to end, by the signal `number`."""

    def __init__(self, number: int) -> None:
        super().__init__(signal.Signals(number).name)
        self.number = number


@contextmanager
def stoppable() -> Iterator[None]:
    """Those signals raise `Stopped` inside, once; a second one ends the process at once.

    One that has a handler, or is ignored as under nohup, stays as it is.
    """

    def stop(number: int, frame: Any) -> None:
        signal.signal(number, signal.SIG_DFL)
        raise Stopped(number)

    own = threading.current_thread() is threading.main_thread()
    heeded = [one for one in SIGNALS if own and signal.getsignal(one) == signal.SIG_DFL]
    for one in heeded:
        signal.signal(one, stop)
    try:
        yield
    finally:
        for one in heeded:
            signal.signal(one, signal.SIG_DFL)


def stop_of(error: BaseException) -> tuple[str, int] | None:
    """What stopped the run and the exit status that shells report for it; None if it failed by itself."""
    if isinstance(error, Stopped):
        return str(error), 128 + error.number
    # Lightning turns Ctrl-C into exit(1) once it has shut down.
    if isinstance(error, KeyboardInterrupt) or isinstance(error.__context__, KeyboardInterrupt):
        return "Ctrl-C", 128 + signal.SIGINT
    if isinstance(error, SystemExit):  # as submitit's, when a job's time on the cluster is over
        return f"exit({error.code})", error.code if isinstance(error.code, int) else 1
    return None


def ending(error: BaseException) -> dict[str, str]:
    """`state` and `error` of status.json for a run that `error` ended."""
    stop = stop_of(error)
    if stop is not None:
        return {"state": "interrupted", "error": stop[0]}
    return {"state": "failed", "error": f"{type(error).__name__}: {error}"}
