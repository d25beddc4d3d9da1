"""Config files that come with the package, by name: `--config=quickstart`.

They lie in `configs/`: beside the package in a checkout, in it where it was installed from a wheel.
"""

from __future__ import annotations

import ast
import importlib.util
import re
from pathlib import Path

from emcid_jax.runtime.errors import UserError

_PACKAGE = Path(__file__).parents[1]


def folder() -> Path:
    """Where the bundled config files lie."""
    installed = _PACKAGE / "configs"
    return installed if installed.is_dir() else _PACKAGE.parent / "configs"


def names() -> tuple[str, ...]:
    """Names of all bundled config files, sorted."""
    return tuple(sorted(path.stem for path in folder().glob("*.py")))


def find(name: str) -> str:
    """The file that `--config=name` means: a file's path as it is, a bundled name, or a module.

    `name:preset` is the same with `:preset` behind it, which the file's `get_config` is given.
    A folder of that name is none of them: a user may keep a bank in `bank/`.
    UserError for a word that is none of them, and for a bundled file's path that is not here.
    """
    path = Path(name)
    if path.exists() and not path.is_dir():
        return name
    head, colon, preset = name.rpartition(":")
    if colon and head:
        return f"{find(head)}:{preset}"
    if path.suffix == ".py" and path.stem in names():
        raise UserError(
            f"--config is {name!r}, which is not there; --config={path.stem} is the bundled one"
        )
    if name.endswith(".py") or not re.fullmatch(r"\w+(\.\w+)*", name):
        return name
    if name in names():
        return str(folder() / f"{name}.py")
    try:
        module = importlib.util.find_spec(name)
    except Exception as error:  # The packages that it is in are the user's code.
        if not isinstance(error, ImportError):
            raise UserError(f"--config is {name!r}, which cannot be imported: {error}") from error
        module = None
    if module is None or not module.has_location or module.origin is None:
        raise UserError(
            f"--config is {name!r}, which is no file, no module, and none of the bundled configs: "
            f"{', '.join(names())}"
        )
    return module.origin


def table() -> str:
    """A line for each bundled config: its name and what it does."""
    width = max(map(len, names()))
    lines = []
    for name in names():
        text = (folder() / f"{name}.py").read_text(encoding="utf-8")
        about = (ast.get_docstring(ast.parse(text)) or "").partition("\n\n")[0]
        lines.append(f"{name:{width}}  {' '.join(about.split())}")
    return "\n".join(lines)
