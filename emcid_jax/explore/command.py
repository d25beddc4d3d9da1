"""`emcid_jax explore RUN`: the page of a run, served on this machine until Ctrl-C."""

from __future__ import annotations

import argparse
import contextlib
import errno
import socket
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

from emcid_jax.runtime.errors import UserError
from emcid_jax.runtime.terminal import show

ADDRESS, PORT = "127.0.0.1", 8321
USAGE = f"""\
usage: emcid_jax explore RUN [--port=PORT]

  RUN      work folder of a finished edit (or of a solved bank), e.g. runs/quickstart; nothing is
           written there
  --port   where the page is served on this machine. Default: {PORT}; 0 takes any that is free
"""


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message}; see `emcid_jax explore --help`")


def run(arguments: Sequence[str]) -> None:
    """Serves the run that `arguments` name until it is interrupted.

    UserError for a mistake in them, a folder that is no run's, or a port that is taken.
    """
    if {"-h", "--help"}.intersection(arguments):
        show(USAGE.rstrip())
        return
    parser = _Parser(add_help=False, allow_abbrev=False)
    parser.add_argument("RUN", type=Path)
    parser.add_argument("--port", type=int, default=PORT)
    given = parser.parse_args(list(arguments))
    try:
        import uvicorn

        from emcid_jax.explore.server import make_app
    except ModuleNotFoundError as error:
        raise UserError(
            f"explore needs the package {error.name}; pip install 'emcid_jax[explore]'"
        ) from error
    from emcid_jax.explore.session import open_session

    with contextlib.closing(_bound(given.port)) as door:
        session = open_session(given.RUN)
        config = uvicorn.Config(
            make_app(session),
            log_level="warning",
            lifespan="off",
            timeout_graceful_shutdown=2,  # Seconds for pictures that are being drawn.
        )
        door.listen()  # Whoever is quick waits.
        with contextlib.suppress(KeyboardInterrupt):
            show(f"{len(session.concepts.concepts)} concepts of {given.RUN}")
            show(f"open http://{ADDRESS}:{door.getsockname()[1]}/ in a browser; Ctrl-C ends this")
            uvicorn.Server(config).run([door])


def _bound(port: int) -> socket.socket:
    """A socket on this machine alone. UserError if the port is taken or is none."""
    if not 0 <= port < 2**16:
        raise UserError(f"--port is {port}; give 1 to 65535, or 0 for any that is free")
    door = socket.socket()
    door.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        door.bind((ADDRESS, port))
    except OSError as error:
        door.close()
        if error.errno in (errno.EADDRINUSE, errno.EACCES):
            raise UserError(
                f"--port is {port}, which is taken ({error.strerror}); give another, or "
                "--port=0 for any that is free"
            ) from error
        raise
    return door
