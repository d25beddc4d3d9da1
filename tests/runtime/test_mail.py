"""Letters through JAX's own coordinator."""

from __future__ import annotations

import threading

import numpy as np

from tests.helpers.coordinator import mails


def test_letters_of_any_size_arrive_once_and_as_a_whole() -> None:
    long = np.random.default_rng(0).bytes(5 * 2**19)  # Three blocks.
    with mails(2) as (first, second):
        assert first.take("a/1") is None
        for name, content in (("a/1", b""), ("a/2", long), ("a/20", b"x")):
            second.send(name, content)
            assert first.take(name) == content
            assert first.take(name) is None
        second.send("done", b"")
        for mail in (first, second, first):  # It stays for all who wait.
            waiting = threading.Thread(target=mail.wait_for, args=("done",))
            waiting.start()
            waiting.join(timeout=60)
            assert not waiting.is_alive()
