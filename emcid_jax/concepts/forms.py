"""Other forms of a request's name, each a request of its own (`config.requests.forms`).

A prompt that holds "tenches" does not hold "tench": the tokens are others, so whatever is written
for the one says nothing of the other.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any

from emcid_jax.concepts.names import normalised
from emcid_jax.concepts.requests import EditRequest
from emcid_jax.config import Form


def plural(name: str) -> str:
    """The plural of an English noun, by `inflect`; the name itself if it is one.

    >>> plural("grey wolf"), plural("sunglasses")
    ('grey wolves', 'sunglasses')
    """
    found = str(_english().plural_noun(name))
    return name if found.endswith("ss") else found  # "sunglassess": it was a plural.


def joined(name: str) -> str:
    """The words written together: "toy shop", "toyshop"."""
    return name.replace(" ", "")


def spaced(name: str) -> str:
    """Spaces for hyphens: "jack-o'-lantern", "jack o' lantern"."""
    return name.replace("-", " ")


FORMS: Mapping[Form, Callable[[str], str]] = MappingProxyType(
    {"plural": plural, "joined": joined, "spaced": spaced}
)


def with_forms(requests: Sequence[EditRequest], forms: Sequence[Form]) -> list[EditRequest]:
    """The requests, each followed by those for the forms of its name.

    Only of what `update` and `rectify` rename: an artist or a profession has no plural that is
    drawn. In the plural the destination is one, too. A form that is a name of the list already, or
    no other word, is left out.

    >>> one = EditRequest("grey wolf", "mouse", ("a photo of {}",))
    >>> [(added.source, added.dest) for added in with_forms([one], ["plural", "joined"])]
    [('grey wolf', 'mouse'), ('grey wolves', 'mice'), ('greywolf', 'mouse')]
    """
    taken = {normalised(name) for one in requests for name in (one.source, *one.dests)}
    every = []
    for request in requests:
        every.append(request)
        for form in forms if request.task in ("update", "rectify") else ():
            source = FORMS[form](request.source)
            if normalised(source) in taken:
                continue
            taken.add(normalised(source))
            (dest,) = map(plural, request.dests) if form == "plural" else request.dests
            origin = f"{request.origin}, {form}"
            every.append(dataclasses.replace(request, source=source, dest=dest, origin=origin))
    return every


@functools.cache
def _english() -> Any:
    """The grammar, loaded where a plural is asked for alone: it takes half of a command's start."""
    import inflect

    return inflect.engine()
