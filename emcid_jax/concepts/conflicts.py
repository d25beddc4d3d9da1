"""Requests that contradict, repeat or follow one another."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, NamedTuple

from emcid_jax.concepts.names import normalised
from emcid_jax.concepts.requests import EditRequest
from emcid_jax.runtime.errors import UserError

Kind = Literal["contradiction", "self", "duplicate", "chain", "cycle"]
Severity = Literal["error", "warning"]


class Conflict(NamedTuple):
    """Requests that do not go together.

    `requests` are their positions in the list and `message` is one line that names them all with
    their origins. Errors: `contradiction` (one source, several destinations) and `self` (a
    destination equal to its own source). Warnings: `duplicate`, `chain` (A -> B with B -> C) and
    `cycle`; these edits are well defined, as every destination is read from the unedited model.
    """

    kind: Kind
    severity: Severity
    requests: tuple[int, ...]
    message: str


def find_conflicts(requests: Sequence[EditRequest]) -> list[Conflict]:
    """Every conflict among the requests, errors first, each in the order of the list."""
    sources = [normalised(request.source) for request in requests]
    dests = [tuple(normalised(dest) for dest in request.dests) for request in requests]
    conflicts = [*_repeats(requests, sources, dests), *_chains(requests, sources, dests)]
    return sorted(conflicts, key=lambda conflict: (conflict.severity, conflict.requests))


def require_consistent(requests: Sequence[EditRequest]) -> list[Conflict]:
    """The warnings among the conflicts; raises one `UserError` with a line per error."""
    conflicts = find_conflicts(requests)
    errors = [conflict.message for conflict in conflicts if conflict.severity == "error"]
    if errors:
        raise UserError("\n".join(errors))
    return conflicts


def _named(request: EditRequest) -> str:
    return f"{request.source!r} -> {' | '.join(map(repr, request.dests))} ({request.origin})"


def _repeats(
    requests: Sequence[EditRequest], sources: list[str], dests: list[tuple[str, ...]]
) -> list[Conflict]:
    """Sources equal to their own destination or to an earlier source."""
    conflicts: list[Conflict] = []
    first: dict[str, int] = {}
    for index, (request, source) in enumerate(zip(requests, sources, strict=True)):
        if source in dests[index]:
            message = (
                f"{request.origin}: dest: equals its own source ({_named(request)})"
                " — name another destination or remove the request"
            )
            conflicts.append(Conflict("self", "error", (index,), message))
        earlier = first.setdefault(source, index)
        if earlier == index:
            continue
        pair = f"({_named(requests[earlier])} and {_named(request)})"
        if _asks(requests[earlier], dests[earlier]) == _asks(request, dests[index]):
            message = f"{request.origin}: source: is edited twice alike {pair} — remove one"
            conflicts.append(Conflict("duplicate", "warning", (earlier, index), message))
        else:
            message = f"{request.origin}: source: has two destinations {pair} — keep one"
            conflicts.append(Conflict("contradiction", "error", (earlier, index), message))
    return conflicts


def _asks(request: EditRequest, dests: tuple[str, ...]) -> dict[str, float]:
    """Share of every destination, whatever the order they are written in."""
    ratios = request.ratios or (1.0,)
    shares: dict[str, float] = {}
    for dest, ratio in zip(dests, ratios, strict=True):
        shares[dest] = shares.get(dest, 0.0) + ratio
    return shares


def _chains(
    requests: Sequence[EditRequest], sources: list[str], dests: list[tuple[str, ...]]
) -> list[Conflict]:
    """Destinations that are another request's source; those that come back round are cycles."""
    first: dict[str, int] = {}
    for index, source in enumerate(sources):
        first.setdefault(source, index)
    after: list[list[int]] = [
        [first[dest] for dest in names if dest in first and dest != sources[index]]
        for index, names in enumerate(dests)
    ]
    # A repeated source stands for its first request in the graph, so that cycles close.
    follows: list[list[int]] = [[] for _ in requests]
    for index, targets in enumerate(after):
        follows[first[sources[index]]].extend(targets)
    component = _components(follows)
    conflicts: list[Conflict] = []
    for index, targets in enumerate(after):
        node = first[sources[index]]
        for target in dict.fromkeys(targets):
            if component[target] != component[node]:
                message = (
                    f"{requests[index].origin}: dest: is itself edited ({_named(requests[index])}"
                    f" and {_named(requests[target])}) — the source becomes the unedited"
                    f" {requests[target].source!r}; name the final destination if it is meant"
                )
                conflicts.append(Conflict("chain", "warning", (index, target), message))
    members: dict[int, list[int]] = {}
    for node, number in enumerate(component):
        if sources[node] in first and first[sources[node]] == node:
            members.setdefault(number, []).append(node)
    for nodes in members.values():
        if len(nodes) > 1:
            names = ", ".join(_named(requests[node]) for node in nodes)
            message = (
                f"{requests[nodes[0]].origin}: dest: requests form a cycle ({names})"
                " — each becomes the unedited next one; remove one if no swap is meant"
            )
            conflicts.append(Conflict("cycle", "warning", tuple(nodes), message))
    return conflicts


def _components(follows: list[list[int]]) -> list[int]:
    """Number of the strongly connected component of every node (Kosaraju, without recursion)."""
    preceded: list[list[int]] = [[] for _ in follows]
    for node, targets in enumerate(follows):
        for target in targets:
            preceded[target].append(node)
    finished: list[int] = []
    seen = [False] * len(follows)
    for root in range(len(follows)):
        if seen[root]:
            continue
        seen[root] = True
        stack = [(root, iter(follows[root]))]
        while stack:
            node, targets = stack[-1]
            target = next((target for target in targets if not seen[target]), None)
            if target is None:
                finished.append(node)
                stack.pop()
            else:
                seen[target] = True
                stack.append((target, iter(follows[target])))
    component = [-1] * len(follows)
    for root in reversed(finished):
        stack_of_nodes = [root] if component[root] < 0 else []
        while stack_of_nodes:
            node = stack_of_nodes.pop()
            if component[node] < 0:
                component[node] = root
                stack_of_nodes.extend(preceded[node])
    return component
