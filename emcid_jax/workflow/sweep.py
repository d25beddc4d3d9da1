"""The cells of a sweep: one after another, or shared out to the hosts of a distributed run.

No cell needs another. Several hosts first find together what missing cells have in common
(memories, second moments), so that nothing is found twice. Then each measures its share by itself,
on its own devices. A finished row travels to the first process, which files it at once: what a kill
costs is the cells in flight.
"""

from __future__ import annotations

import contextlib
import dataclasses
import io
import json
import tarfile
import threading
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from tqdm import tqdm

from emcid_jax.runtime import parallel
from emcid_jax.runtime.mail import PAUSE, Mail
from emcid_jax.runtime.parallel import Process
from emcid_jax.storage.files import is_finished, listing, write_atomically
from emcid_jax.workflow.table import Row, Table, made
from emcid_jax.workflow.workdir import Run

Measure = Callable[[Run], Mapping[str, Any]]
_DONE = "sweep/done"


@dataclasses.dataclass(frozen=True, eq=False)
class Cell:
    """One row of the table before it is measured; see `Table.row`."""

    name: Mapping[str, Any]
    decides: Any
    measure: Measure
    """Its figures, by the devices of one host."""
    cost: int = 1
    """How long it takes, compared with other cells."""
    needs: Hashable = None
    """Cells with equal `needs` have something in common."""
    find: Callable[[Run], Any] | None = None
    """Finds what they have in common, by the devices of all hosts, and files it in the workdir. Of
    cells with equal `needs` that of the costliest is called; it serves the others."""


def measured(
    cells: Sequence[Cell],
    table: Table,
    run: Run,
    title: str,
    show: Callable[[list[Row]], Any] | None = None,
    files: Sequence[str] = (),
    me: Process | None = None,
) -> bool:
    """Fills the table with the rows of `cells`, in their order; those that it holds are kept.

    Args:
        cells: all that are asked for; of one name only the last counts.
        table: the same on all processes at the beginning.
        run: this process's run, all of whose workdirs are equal at the beginning.
        title: of the progress bar.
        show: called with the rows so far, of this run's cells, whenever there is another.
        files: patterns of files in the workdir that belong to a row and travel with it.
        me: this process; default: as JAX says.

    Returns:
        Whether the table is complete: on the first process. The others have nothing left to do.
    """
    me, show = me or parallel.me(), show or (lambda _: None)
    cells = list({json.dumps(cell.name, sort_keys=True): cell for cell in cells}.values())
    if me.mail is None:
        for cell in tqdm(cells, title, unit="cell", disable=not run.config.progress):
            table.row(cell.name, cell.decides, lambda cell=cell: cell.measure(run))
            show(table.rows)
        return True
    missing = [cell for cell in cells if table.known(cell.name, cell.decides) is None]
    by_cost = sorted(missing, key=lambda cell: cell.cost)
    for find in {cell.needs: cell.find for cell in by_cost}.values():
        if find is not None:
            find(run)
    shares = share_out([cell.cost for cell in missing], me.count)
    mine = [missing[place] for place in shares[me.number]]
    if me.number:
        _measure_share(mine, run, files, me.number, me.mail)
        me.mail.wait_for(_DONE)
        return False

    def file(row: Row) -> None:
        table.keep(row)
        known = (table.known(cell.name, cell.decides) for cell in cells)
        show([row for row in known if row is not None])

    with (
        tqdm(total=len(missing), desc=title, unit="cell", disable=not run.config.progress) as bar,
        _filing([len(share) for share in shares], me.mail, run.workdir, file, bar.update),
    ):
        _measure_share(mine, run, (), me.number, me.mail)
    for cell in cells:
        table.row(cell.name, cell.decides, _is_there)
        show(table.rows)
    me.mail.send(_DONE, b"")
    return True


def share_out(costs: Sequence[int], count: int) -> list[list[int]]:
    """Which of the things that cost so much each of `count` processes does, in ascending order.

    The costliest first, each to whom has the least to do: the busiest has less than the mean and
    one thing more.
    """
    shares: list[list[int]] = [[] for _ in range(count)]
    loads = [0] * count
    for place in sorted(range(len(costs)), key=lambda place: (-costs[place], place)):
        least = loads.index(min(loads))
        shares[least].append(place)
        loads[least] += costs[place]
    return [sorted(share) for share in shares]


def _is_there() -> Row:
    raise AssertionError("a cell that no process has measured")


def _measure_share(
    cells: Sequence[Cell], run: Run, files: Sequence[str], number: int, mail: Mail
) -> None:
    """Measures `cells` on the devices of this host; rows, and their `files`, go to the first."""
    with parallel.alone():
        own = dataclasses.replace(
            run, mesh=parallel.make_mesh(weight_shards=run.config.weight_shards)
        )
        for place, cell in enumerate(cells):
            before = listing(run.workdir) if files else {}
            row = made(cell.name, cell.decides, cell.measure(own))
            after = listing(run.workdir) if files else {}
            new = [name for name, about in after.items() if before.get(name) != about]
            mail.send(f"{_letter(number, place)}/files", _packed(run.workdir, new, files))
            mail.send(f"{_letter(number, place)}/row", json.dumps(row).encode())


@contextlib.contextmanager
def _filing(
    counts: Sequence[int],
    mail: Mail,
    workdir: Path,
    file: Callable[[Row], None],
    tell: Callable[[int], Any],
) -> Iterator[None]:
    """Files rows while the block runs as they come, and waits at its end for all of them.

    `counts` says how many of every process. If the block fails, those that have come are filed.
    """
    failed = threading.Event()
    with ThreadPoolExecutor(1, "filing") as pool:
        filed = pool.submit(_file_all, counts, mail, workdir, file, tell, failed)
        try:
            yield
            filed.result()
        except BaseException:
            failed.set()
            raise


def _file_all(
    counts: Sequence[int],
    mail: Mail,
    workdir: Path,
    file: Callable[[Row], None],
    tell: Callable[[int], Any],
    failed: threading.Event,
) -> None:
    """Files rows until none is missing, or until all that have come after `failed`."""
    places = [0] * len(counts)
    while places != list(counts):
        last = failed.is_set()
        for number, count in enumerate(counts):
            while places[number] < count:
                letter = _letter(number, places[number])
                row = mail.take(f"{letter}/row")
                if row is None:
                    break
                _unpack(mail.take(f"{letter}/files") or b"", workdir)
                file(json.loads(row))
                places[number] += 1
                tell(1)
        if last:
            return
        failed.wait(PAUSE)


def _letter(number: int, place: int) -> str:
    return f"sweep/{number}/{place}"


def _packed(workdir: Path, names: Sequence[str], patterns: Sequence[str]) -> bytes:
    """Those of the finished files `names` that match a pattern, as a tar archive."""
    packed = io.BytesIO()
    wanted = {path for pattern in patterns for path in workdir.glob(pattern)}
    with tarfile.open(None, "w", packed) as tar:
        for name in sorted(names):
            if workdir / name in wanted and is_finished(Path(name).name):
                tar.add(workdir / name, name)
    return packed.getvalue()


def _unpack(packed: bytes, workdir: Path) -> None:
    """Writes the files of `_packed`, each by one rename."""
    with tarfile.open(None, "r", io.BytesIO(packed)) as tar:
        for member in tar:
            content = tar.extractfile(member)
            assert content is not None
            write_atomically(workdir / member.name, content.read())
