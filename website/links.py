"""Links of the repository's pages, as links of the site: GitHub shows the same pages unchanged."""

from __future__ import annotations

import posixpath
import re
from collections.abc import Mapping

_CODE = re.compile(r"(^```.*?^```)", re.DOTALL | re.MULTILINE)
_LINK = re.compile(r"(!?)\[((?:[^\[\]]|\[[^\]]*\])*)\]\(([^)\s]+)\)")


def anchor(heading: str, separator: str = "-") -> str:
    """The anchor that GitHub gives a heading."""
    return re.sub(r"[^\w\- ]", "", heading).lower().replace(" ", separator)


def for_site(text: str, page: str, sites: Mapping[str, str]) -> str:
    """The page's text with links that hold on the site.

    A link to something that is in the repository and not on the site becomes its words.

    Args:
        text: Markdown.
        page: the page's path in the repository.
        sites: path in the repository -> path in the site, of all pages and images; `page` included.
    """

    def replaced(match: re.Match[str]) -> str:
        mark, words, link = match.groups()
        target, hash_, heading = link.partition("#")
        if not target or re.match(r"[a-z]+:", link):
            return match[0]
        path = posixpath.normpath(posixpath.join(posixpath.dirname(page), target))
        if path not in sites:
            return words
        to = posixpath.relpath(sites[path], posixpath.dirname(sites[page]) or ".")
        return f"{mark}[{words}]({to}{hash_}{heading})"

    parts = _CODE.split(text)
    return "".join(part if part.startswith("```") else _LINK.sub(replaced, part) for part in parts)
