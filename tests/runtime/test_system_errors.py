"""What the machine refuses is a line that names the path; a mistake in the code is none."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from emcid_jax.runtime.system_errors import explained


def raised(call: Callable[[], object]) -> Exception:
    with pytest.raises(Exception) as caught:
        call()
    return caught.value


def test_a_missing_path_is_named(tmp_path: Path) -> None:
    path = tmp_path / "nothing" / "here"
    line = explained(raised(path.read_bytes), "the workdir")
    assert line is not None
    assert line.startswith(f"{path}: no such file or folder; ")


@pytest.mark.parametrize(
    ("code", "words"),
    [
        (errno.EACCES, "no permission; change the owner"),
        (errno.EROFS, "read-only file system"),
        (errno.ENOSPC, "the disk is full; free some space"),
        (errno.ENAMETOOLONG, "give a shorter one"),
        (errno.ELOOP, "links that lead in a circle"),
        (errno.EXDEV, "see whether this is the path you mean"),
    ],
)
def test_every_answer_of_the_system_has_its_line(code: int, words: str) -> None:
    line = explained(OSError(code, os.strerror(code), "/some/path"), "the workdir")
    assert line is not None
    assert line.startswith("/some/path: ")
    assert words in line


def test_a_full_disk_without_a_path_names_the_place() -> None:
    with open("/dev/full", "wb", buffering=0) as full:
        error = raised(lambda: full.write(b"x"))
    assert explained(error, "--workdir 'runs/x'") == (
        "--workdir 'runs/x': the disk is full; free some space and give the same command again"
    )


def test_a_full_disk_under_the_safetensors_library() -> None:
    """Rust's answer is no OSError; a limit on file sizes stands for the disk."""
    program = (
        "import resource, signal, sys\n"
        "import numpy as np\n"
        "from safetensors.numpy import save_file\n"
        "from emcid_jax.runtime.system_errors import explained\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))\n"
        "try: save_file({'a': np.zeros(10_000)}, sys.argv[1])\n"
        "except Exception as error: print(type(error).__name__, explained(error, 'PLACE'))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, "/tmp/too_large.safetensors"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.startswith("SafetensorError PLACE: larger than a file may be here")


@pytest.mark.parametrize(
    "said",
    [
        "FAILED_PRECONDITION: Error writing [OS error 27: File too large]",
        "Failed to write, os_error_code='27' [source locations='file_util_posix.cc']",
    ],
)
def test_tensorstore_says_the_number_in_two_ways(said: str) -> None:
    line = explained(ValueError(said), "--workdir 'runs/x'")
    assert line is not None
    assert line.startswith("--workdir 'runs/x': larger than a file may be here")


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can mount")
def test_a_small_disk_and_one_to_read_only(tmp_path: Path) -> None:
    program = (
        "import sys\n"
        "from pathlib import Path\n"
        "from emcid_jax import main\n"
        "from emcid_jax.storage.files import write_atomically\n"
        "for name, size in (('small', 10), ('large', 10**6)):\n"
        "    try: write_atomically(Path(sys.argv[1]) / name, bytes(size))\n"
        "    except OSError as error: print(main.answer(error, 'PLACE'))\n"
        "print(*sorted(p.name for p in Path(sys.argv[1]).iterdir()))\n"
    )
    (tmp_path / "write.py").write_text(program)
    (tmp_path / "disk").mkdir()
    write = f"{sys.executable} {tmp_path / 'write.py'} {tmp_path}/disk"
    done = subprocess.run(
        ["unshare", "-m", "sh", "-c", f"mount -t tmpfs -o size=64k none {tmp_path}/disk && {write}"
         f" && mount -o remount,ro {tmp_path}/disk && {write}"],
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        check=False,
    )  # fmt: skip
    if "mount" in done.stderr or "unshare" in done.stderr:
        pytest.skip(done.stderr)
    assert done.stdout.split() == ["2", "small", "2", "2", "small"]
    full, *refused = done.stderr.splitlines()
    assert full.startswith(f"error: {tmp_path}/disk/large: the disk is full; ")
    assert len(refused) == 2
    assert all("lies on a read-only file system; give another path" in line for line in refused)


def test_memory() -> None:
    line = explained(raised(lambda: np.empty(2**60, np.int8)), "x")
    assert line is not None
    assert line.startswith("not enough memory (Unable to allocate")
    line = explained(RuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 9 bytes."), "x")
    assert line is not None
    assert "concept_batch" in line


def test_the_cause_counts() -> None:
    try:
        try:
            Path("/nowhere/at/all").read_bytes()
        except OSError as error:
            raise ValueError("cannot load") from error
    except ValueError as error:
        line = explained(error, "x")
    assert line is not None
    assert line.startswith("/nowhere/at/all: ")


def test_mistakes_in_the_code_are_none_of_the_systems() -> None:
    assert explained(KeyError("x"), "x") is None
    assert explained(AssertionError(), "x") is None
    assert explained(RuntimeError("wrong state"), "x") is None
    assert explained(OSError("a library's own"), "x") is None
    assert explained(OSError(errno.EBADF, "Bad file descriptor"), "x") is None
