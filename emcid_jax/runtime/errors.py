"""The one exception a user of the command line meets."""

from __future__ import annotations


class UserError(ValueError):
    """Bad input: the message names the field, the value and the fix. `main` exits with code 2."""
