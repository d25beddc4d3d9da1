"""JAX's coordinator with clients in one process, as it has one in every process of a real run."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

from jaxlib import _jax

from emcid_jax.runtime.mail import Mail


@contextlib.contextmanager
def mails(count: int) -> Iterator[list[Mail]]:
    """The mail of `count` processes."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    service = _jax.get_distributed_runtime_service(address, count)
    clients = [
        _jax.get_distributed_runtime_client(address, number, init_timeout=60)
        for number in range(count)
    ]
    with ThreadPoolExecutor(count) as pool:
        list(pool.map(lambda client: client.connect(), clients))
        try:
            yield [Mail(client) for client in clients]
        finally:
            list(pool.map(lambda client: client.shutdown(), clients))
            service.shutdown()
