"""The table of a sweep: filled row by row, and resumed only where the same inputs decided a row."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from emcid_jax.config import renamed
from emcid_jax.editing.bank.memories import hash_of
from emcid_jax.runtime.errors import UserError
from emcid_jax.storage import checksums

FORMAT = 2
"""Part of every row's hash. Raise it whenever a task's figures come out differently from the same
inputs: rows of earlier versions are then measured anew."""

_REMEDY = "move it away or use another --workdir"

Row = dict[str, Any]


class Table:
    """Rows of figures in a JSON file, each beside the hash of everything that decides it.

    `rows` are those that this run has asked for, in the order of asking. Rows of earlier runs stay
    in the file under `earlier` until they are asked for: nothing that was measured is lost, and
    nothing is shown that this run's settings do not stand for.

    Example:
        table = Table(workdir / "ablation.json")
        row = table.row({"count": 10}, [model_hashes, settings], lambda: {"score": measure(10)})
    """

    def __init__(self, path: Path, **about: Any) -> None:
        """Reads the rows that lie at `path`; `about` are further JSON values that it shall hold.

        UserError if something else lies there.
        """
        self._path, self._about, self.rows = path, about, list[Row]()
        try:
            old = checksums.read_json(path, _REMEDY, older=True) if path.exists() else {"rows": []}
            self._earlier: list[Row] = [*old["rows"], *old.get("earlier", [])]
            self._hashes()  # Refuses rows that are no mappings.
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise UserError(f"{path}: is no table of this task ({error}); {_REMEDY}") from error

    def row(
        self, name: Mapping[str, Any], decides: Any, measure: Callable[[], Mapping[str, Any]]
    ) -> Row:
        """The row called `name`: found, or measured and written to the file at once.

        Args:
            name: the fields that tell a reader which row this is; there is one row of each name.
            decides: JSON values of everything that the figures depend on beside `name`: settings,
                hashes of models, the content (not the path) of inputs.
            measure: gives the figures, as JSON values.
        """
        found = self.known(name, decides)
        if found is None:
            found = made(name, decides, measure())
        else:
            self._earlier.remove(found)
            found = found | {**name, "hash": _key(name, decides)}
        self._earlier = [row for row in self._earlier if {**row, **name} != row]
        self.rows.append(found)
        self.write()
        return found

    def known(self, name: Mapping[str, Any], decides: Any) -> Row | None:
        """The row that `row` would find, if it lies under `earlier`."""
        about, hashes = [FORMAT, dict(name), decides], self._hashes()
        keys = _key(name, decides), hash_of(renamed.older(about))
        return next((self._earlier[hashes.index(key)] for key in keys if key in hashes), None)

    def keep(self, row: Row) -> None:
        """Files under `earlier` what another process made by `made`."""
        self._earlier.append(row)
        self.write()

    def write(self, **about: Any) -> None:
        """Writes the file by one rename; `about` are further JSON values that it shall hold."""
        self._about |= about
        checksums.write_json(
            self._path, self._about | {"rows": self.rows, "earlier": self._earlier}
        )

    def _hashes(self) -> list[str | None]:
        return [row.get("hash") for row in self._earlier]


def made(name: Mapping[str, Any], decides: Any, figures: Mapping[str, Any]) -> Row:
    """The row called `name` of a table, see `Table.row`, that holds `figures`."""
    return {**name, "hash": _key(name, decides), **figures}


def markdown(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table of cells, its head first."""
    first, *others = (f"| {' | '.join(row)} |" for row in (head, *rows))
    return "\n".join([first, "|---" * len(head) + "|", *others]) + "\n"


def estimate(one: Mapping[str, Any], digits: int = 2) -> str:
    """A value, and its interval where it has one."""
    figures = (one[name] for name in ("value", "low", "high"))
    value, *ends = (f"{figure:.{digits}f}" for figure in figures if figure is not None)
    return f"{value} ({' to '.join(ends)})" if ends else value


def _key(name: Mapping[str, Any], decides: Any) -> str:
    return hash_of([FORMAT, dict(name), decides])
