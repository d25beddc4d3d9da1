"""YAML as located records: plain values only, no larger in memory than it looks."""

from __future__ import annotations

from collections.abc import Hashable
from typing import Any

import yaml

from emcid_jax.runtime.errors import Failures, Problem
from emcid_jax.storage.json_text import MAX_DEPTH, Listed, Record, checked_tree

LIMIT = 2**22
"""Characters read at most; PyYAML takes seconds for a million."""
MAX_VALUES = 2**20
"""Values that a file may hold, those that aliases repeat included."""
_TAG = "tag:yaml.org,2002:"
_SCALARS = frozenset(_TAG + name for name in ("null", "bool", "int", "float", "timestamp", "merge"))


def parse_yaml(text: str, failures: Failures) -> Any:
    """The value that `text` holds; as in `json_text`, records know the lines of their keys.

    What is wrong is added to `failures`; the value is then of no use. Tags that ask for anything
    but the plain value, values that their tag cannot have, and aliases that repeat themselves or
    multiply beyond `MAX_VALUES` are problems.
    """
    if len(text) > LIMIT:
        problem = f"has {len(text):,} characters, {LIMIT:,} are read at most"
        failures.add(1, Problem("yaml", problem, text[:20], "write it as JSON or CSV"))
        return None
    loader: _Loader | None = None
    try:
        loader = _Loader(text, failures)
        node = loader.get_single_node()
        if node is None:
            failures.add(1, Problem("yaml", "holds nothing", text[:20], "write at least one value"))
            return None
        _Check(loader, failures).values(node)
        if failures:
            return None
        return checked_tree(loader.construct_document(node), failures)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        _add(failures, text, mark.line + 1 if mark else 1, error.problem or "cannot be read")
    except yaml.reader.ReaderError as error:
        _add(failures, text, text[: error.position].count("\n") + 1, error.reason)
    except RecursionError:
        failures.add(1, _too_deep(text[:20]))
    finally:
        if loader is not None:
            loader.dispose()
    return None


def _add(failures: Failures, text: str, line: int, problem: str) -> None:
    lines = text.split("\n")
    found = lines[line - 1].strip() if line <= len(lines) else ""
    failures.add(line, Problem("yaml", " ".join(problem.split()), found, "correct the YAML"))


def _too_deep(value: object) -> Problem:
    return Problem("yaml", "is nested too deeply", value, "flatten the file")


class _Loader(yaml.SafeLoader):
    """Safe loader whose mappings are `Record`s: no Python object can be built from the file."""

    def __init__(self, text: str, failures: Failures) -> None:
        super().__init__(text)
        self.failures = failures

    def record(self, node: yaml.MappingNode) -> Record:
        seen: set[Hashable] = set()
        for key_node, _ in node.value:
            key = key_node.value if isinstance(key_node, yaml.ScalarNode) else id(key_node)
            if key in seen and key != "<<":
                problem = Problem(str(key), "is given twice", key, "keep one of them")
                self.failures.add(key_node.start_mark.line + 1, problem)
            seen.add(key)
        self.flatten_mapping(node)
        fields: dict[str, Any] = {}
        lines: dict[str, int] = {}
        for key_node, value_node in node.value:
            key = str(self.construct_object(key_node, deep=True))
            fields[key] = self.construct_object(value_node, deep=True)
            lines[key] = key_node.start_mark.line + 1
        return Record(fields, node.start_mark.line + 1, lines)

    def listed(self, node: yaml.SequenceNode) -> Listed:
        entries = self.construct_sequence(node, deep=True)
        return Listed(entries, (item.start_mark.line + 1 for item in node.value))


_Loader.add_constructor(_TAG + "map", _Loader.record)
_Loader.add_constructor(_TAG + "seq", _Loader.listed)


class _Check:
    """Holds the nodes of a document against what may be built from them."""

    def __init__(self, loader: _Loader, failures: Failures) -> None:
        self.loader = loader
        self.failures = failures
        self.known: dict[int, int] = {}
        """Values in a node, by the node's id."""

    def values(self, node: yaml.Node, depth: int = 0) -> int:
        """How many values stand in a node, aliases written out; problems are noted."""
        if depth > MAX_DEPTH:  # An alias inside of what it names ends here, too.
            self.note(node, _too_deep(node.tag.removeprefix(_TAG)))
        if self.failures or id(node) in self.known:
            return self.known.get(id(node), 1)
        count = 1
        if isinstance(node, yaml.ScalarNode):
            self.scalar(node)
        elif node.tag != _TAG + ("seq" if isinstance(node, yaml.SequenceNode) else "map"):
            self.unfit_tag(node)
        elif isinstance(node, yaml.SequenceNode):
            count += sum(self.values(item, depth + 1) for item in node.value)
        else:
            count += sum(self.values(item, depth + 1) for pair in node.value for item in pair)
        if count > MAX_VALUES and not self.failures:
            problem = Problem("yaml", f"aliases make {count:,} values of it", "*", "write less")
            self.note(node, problem)
        self.known[id(node)] = count
        return count

    def scalar(self, node: yaml.ScalarNode) -> None:
        if node.tag == _TAG + "str":
            return
        found = self.loader.resolve(yaml.ScalarNode, node.value, (True, False))
        if node.tag not in _SCALARS or node.tag != found:
            self.unfit_tag(node)
        elif node.tag != _TAG + "merge":
            try:
                self.loader.construct_object(node)
            except (ValueError, OverflowError) as error:  # 2024-13-45
                self.note(node, Problem("yaml", f"cannot be read: {error}", node.value, "quote it"))

    def unfit_tag(self, node: yaml.Node) -> None:
        tag = node.tag.replace(_TAG, "!!")
        value = node.value if isinstance(node, yaml.ScalarNode) else tag
        self.note(
            node, Problem("yaml", f"cannot be of the tag {tag}", value, "write a plain value")
        )

    def note(self, node: yaml.Node, problem: Problem) -> None:
        self.failures.add(node.start_mark.line + 1, problem)
