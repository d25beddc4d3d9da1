"""SIGTERM, the notice before a machine is taken away: finish the chunk, save it, stop."""

from __future__ import annotations

import contextlib
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from typing import Any

from emcid_jax.runtime import terminal

EXIT_CODE = 128 + signal.SIGTERM
"""What a process that stopped for SIGTERM returns: 143, as shells and schedulers expect."""


class Preempted(BaseException):
    """SIGTERM came, and what had to be finished is finished."""


@contextlib.contextmanager
def heeded() -> Iterator[None]:
    """In the block SIGTERM raises `Preempted`: at once, or at the end of `finishing`.

    A library that it cuts short (C code being imported, say) may answer with an error of its own:
    that is no error then.
    """
    came = False

    def stop(*_: Any) -> None:
        nonlocal came
        came = True
        raise Preempted

    with _on_sigterm(stop):
        try:
            yield
        except Exception as error:
            if came:
                raise Preempted from error
            raise


@contextlib.contextmanager
def finishing(what: str) -> Iterator[None]:
    """Puts SIGTERM off to the end of the block, which would be lost if it were cut.

    With several processes all stop at the end of the same block, whichever got the signal.
    """
    came = False

    def note(*_: Any) -> None:
        nonlocal came
        came = True
        terminal.show(f"SIGTERM: stopping after {what}", sys.stderr)

    with _on_sigterm(note):
        yield
    from emcid_jax.runtime import parallel  # imports JAX, which the command line does without

    if parallel.any_process(came):
        signal.raise_signal(signal.SIGTERM)  # to whoever handled it before


@contextlib.contextmanager
def _on_sigterm(handler: Callable[..., None]) -> Iterator[None]:
    if threading.current_thread() is not threading.main_thread():
        yield  # Python hands signals to the main thread only.
        return
    before = signal.signal(signal.SIGTERM, handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
