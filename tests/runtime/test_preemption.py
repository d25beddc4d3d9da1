"""SIGTERM: at once where nothing is lost, else when what runs is finished."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator

import pytest

from emcid_jax.runtime.preemption import Preempted, finishing, heeded


@pytest.fixture(autouse=True)
def handler() -> Iterator[None]:
    """Whatever a test does, SIGTERM is handled as before."""
    before = signal.getsignal(signal.SIGTERM)
    yield
    assert signal.getsignal(signal.SIGTERM) is before


def term() -> None:
    signal.raise_signal(signal.SIGTERM)


def test_sigterm_stops_at_once_where_nothing_is_lost() -> None:
    done = []

    def work() -> None:
        done.append("before")
        term()
        done.append("after")

    with pytest.raises(Preempted), heeded():
        work()
    assert done == ["before"]


def test_a_library_that_was_cut_short_answers_with_an_error_of_its_own() -> None:
    """As C code does while it is imported: "ImportError: initialization failed"."""

    def work() -> None:
        try:
            term()
        except Preempted:
            raise ImportError("initialization failed") from None

    with pytest.raises(Preempted), heeded():
        work()


def test_what_is_to_be_finished_is_finished_first(capsys: pytest.CaptureFixture[str]) -> None:
    done = []

    def work() -> None:
        with finishing("the chunk"):
            term()
            term()
            done.append("inside")
        done.append("after")

    with pytest.raises(Preempted), heeded():
        work()
    assert done == ["inside"]
    assert "SIGTERM: stopping after the chunk\n" in capsys.readouterr().err


def test_without_sigterm_nothing_happens() -> None:
    with heeded(), finishing("the chunk"):
        pass


def test_an_error_inside_is_the_one_that_is_told() -> None:

    def work() -> None:
        term()
        raise KeyError

    with pytest.raises(KeyError), heeded(), finishing("the chunk"):
        work()


def test_preemption_is_no_error_that_a_handler_of_errors_swallows() -> None:
    assert not issubclass(Preempted, Exception)


def test_a_thread_goes_on() -> None:
    """Python hands signals to the main thread only."""
    done = []

    def work() -> None:
        with heeded(), finishing("the chunk"):
            done.append("inside")

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert done == ["inside"]
