"""Lists of names in text files."""

from __future__ import annotations

from pathlib import Path

from emcid_jax.runtime.errors import UserError


def names_in_file(path: str, field: str, otherwise: str = "") -> list[str]:
    """The names in a text file, one a line; blank lines are none.

    UserError if it cannot be read: `field` is the setting that named it, `otherwise` what else it
    may hold.
    """
    try:
        lines = Path(path).read_text("utf8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(
            f"{field} is {path!r}, which cannot be read ({error}); give a text file with a name a "
            f"line{otherwise}"
        ) from error
    return [line.strip() for line in lines if line.strip()]
