"""Edit requests: the one thing a user asks, checked at construction."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Iterator
from typing import Literal, get_args

from emcid_jax.concepts.names import normalised, stripped, text_problems
from emcid_jax.concepts.templates import slot_count
from emcid_jax.runtime.errors import Problem, UserError

Task = Literal["update", "erase", "rectify", "debias"]
TASKS: tuple[str, ...] = get_args(Task)
MAX_SEED = 2**32 - 1
GLOBAL_SOURCES = ("[EOS]", "[CLS]")


class RequestError(UserError):
    """A request with bad fields; `problems` lists them all, the message has one line for each."""

    def __init__(self, problems: Iterable[Problem], origin: str) -> None:
        self.problems = tuple(problems)
        super().__init__("\n".join(problem.line(origin) for problem in self.problems))


@dataclasses.dataclass(frozen=True)
class EditRequest:
    """One edit: draw `dest` where the model is asked for `source`.

    Raises `RequestError` (a `UserError`) listing every bad field. Two requests are equal when they
    ask the same; where they were read (`origin`) does not count.
    """

    source: str
    """Name of the concept to change; fills the slot of every template."""
    dest: str | tuple[str, ...]
    """What to draw instead. `debias`: at least two destinations to mix. `erase` may leave it empty:
    the source is then pulled to the empty prompt."""
    templates: tuple[str, ...]
    """Editing prompts (Stage I and the keys of Stage II), each with exactly one `{}`."""
    task: Task = "update"
    """`update`, `erase`, `rectify` or `debias`."""
    seed: int = 0
    """Seed of the training images and of Stage I's noise, 0 to 2^32 - 1."""
    weight: float = 1.0
    """Weight of the request in Stage II's least squares, > 0."""
    ratios: tuple[float, ...] = ()
    """`debias` only: wanted share of each destination, summing to 1."""
    source_id: int | None = None
    """Evaluation: class id of the source."""
    dest_id: int | None = None
    """Evaluation: class id of the destination."""
    seeds: tuple[int, ...] = ()
    """Evaluation: image seeds, one per validation template (per template where there are none)."""
    validation_templates: tuple[str, ...] = ()
    """Evaluation: prompts not used in editing, with one `{}` or literal with none."""
    image_paths: tuple[str, ...] = ()
    """Training images on disk, used by image source `files`; of `debias` the first destination's
    first."""
    origin: str = dataclasses.field(default="request", compare=False)
    """Where the request was read, `file:line`."""

    def __post_init__(self) -> None:
        problems = tuple(_problems(self))
        if problems:
            raise RequestError(problems, self.origin)

    @property
    def dests(self) -> tuple[str, ...]:
        """The destinations as a tuple: one, or those of a `debias` request."""
        return (self.dest,) if isinstance(self.dest, str) else self.dest


def with_validation(
    requests: Iterable[EditRequest], validation: Iterable[EditRequest]
) -> list[EditRequest]:
    """Requests with the evaluation prompts and seeds of their namesakes in `validation`.

    For benchmarks that keep editing and evaluation prompts in two files; namesakes have the same
    source and destination. A request without one comes back unchanged.
    """
    found = {_compared(other): other for other in validation}
    merged = []
    for request in requests:
        other = found.get(_compared(request), request)
        merged.append(
            dataclasses.replace(
                request, validation_templates=other.validation_templates, seeds=other.seeds
            )
        )
    return merged


def _compared(request: EditRequest) -> tuple[str, ...]:
    return tuple(map(normalised, (request.source, *request.dests)))


def is_integer(value: object) -> bool:
    """Whether a value is an int and not a bool."""
    return isinstance(value, int) and not isinstance(value, bool)


def _problems(request: EditRequest) -> Iterator[Problem]:
    yield from _name_problems("source", request.source)
    yield from _task_problems(request)
    yield from _template_problems(request)
    yield from _seed_problems(request)
    for field in ("source_id", "dest_id"):
        value = getattr(request, field)
        if value is not None and not (is_integer(value) and 0 <= value <= MAX_SEED):
            yield Problem(field, "is not a class id", value, "give an integer >= 0 or leave it out")
    if not (_is_number(request.weight) and request.weight > 0):
        yield Problem("weight", "is not a positive number", request.weight, "give a number > 0")
    for path in request.image_paths:
        if not isinstance(path, str) or not path.strip():
            yield Problem("image_paths", "is not a path", path, "give file names")
        else:
            yield from text_problems("image_paths", path)
    shared = isinstance(request.dest, tuple) and request.dest
    if shared and len(request.image_paths) % len(request.dest):
        problem = f"{len(request.image_paths)} files cannot be shared by {len(request.dest)}"
        fix = "give as many files for every destination, the first one's first"
        yield Problem("image_paths", problem, request.image_paths, fix)


def _name_problems(field: str, name: object) -> Iterator[Problem]:
    if not isinstance(name, str):
        yield Problem(field, "is not text", name, "give a name in quotes")
    elif not stripped(name):
        yield Problem(field, "is empty", name, "give the concept's name")
    elif name.strip().upper() in GLOBAL_SOURCES:
        yield Problem(field, "global edits are not supported", name, "name a concept instead")
    elif stripped(name) != name.strip():  # The last token of the name is the one that is edited.
        yield Problem(field, "has an invisible character at an end", name, "remove it")
    else:
        yield from text_problems(field, name)


def _task_problems(request: EditRequest) -> Iterator[Problem]:
    if request.task not in TASKS:
        yield Problem("task", "is unknown", request.task, f"choose one of {', '.join(TASKS)}")
        return
    if request.task != "debias":
        if not isinstance(request.dest, str):
            yield Problem(
                "dest",
                f"task {request.task} takes one destination",
                request.dest,
                "give one name, or set task to debias",
            )
        elif request.dest or request.task != "erase":
            yield from _name_problems("dest", request.dest)
        if request.ratios:
            yield Problem("ratios", "only task debias has ratios", request.ratios, "remove them")
        return
    if isinstance(request.dest, str) or len(request.dest) < 2:
        yield Problem("dest", "debias needs at least two destinations", request.dest, "give a list")
        return
    for name in request.dest:
        yield from _name_problems("dest", name)
    if len(request.ratios) != len(request.dest):
        fix = f"give {len(request.dest)} numbers, one per destination"
        yield Problem("ratios", "has the wrong length", request.ratios, fix)
    elif not all(_is_number(ratio) and ratio >= 0 for ratio in request.ratios):
        yield Problem("ratios", "has a bad share", request.ratios, "give numbers >= 0")
    elif abs(sum(request.ratios) - 1) > 1e-6:
        yield Problem("ratios", "do not sum to 1", request.ratios, "make the shares sum to 1")


def _template_problems(request: EditRequest) -> Iterator[Problem]:
    if not request.templates:
        yield Problem("templates", "is empty", request.templates, "give at least one template")
    for template in request.templates:
        if not isinstance(template, str):
            yield Problem("templates", "is not text", template, "put each template in quotes")
        elif slot_count(template) != 1:
            problem = f"has {slot_count(template)} slots" if "{}" in template else "has no slot {}"
            yield Problem("templates", problem, template, "write exactly one {} for the name")
        else:
            yield from text_problems("templates", template)
    for template in request.validation_templates:
        if not isinstance(template, str) or not template.strip():
            problem = "is not a prompt"
            yield Problem("validation_templates", problem, template, "give a sentence")
        elif slot_count(template) > 1:
            problem = f"has {slot_count(template)} slots"
            yield Problem("validation_templates", problem, template, "write at most one {}")
        else:
            yield from text_problems("validation_templates", template)


def _seed_problems(request: EditRequest) -> Iterator[Problem]:
    fix = f"give an integer from 0 to {MAX_SEED}"
    for field, seeds in (("seed", (request.seed,)), ("seeds", request.seeds)):
        for seed in seeds:
            if not (is_integer(seed) and 0 <= seed <= MAX_SEED):
                yield Problem(field, "is not a seed", seed, fix)
    prompts = request.validation_templates or request.templates
    if request.seeds and len(request.seeds) != len(prompts):
        which = "validation_templates" if request.validation_templates else "templates"
        fix = f"give {len(prompts)} seeds, one per entry of {which}, or none"
        yield Problem("seeds", f"has {len(request.seeds)} seeds", request.seeds, fix)


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
