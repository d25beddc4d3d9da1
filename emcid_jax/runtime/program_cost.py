"""What a program costs, read off its jaxpr: operations, traffic and memory, whatever the compiler.

Only matrix products and convolutions are counted, as is usual for utilisation; loops count as often
as they run (XLA's own analysis counts a loop's body once).
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
from jax.extend.core import ClosedJaxpr, Jaxpr, JaxprEqn, Literal


class Cost(NamedTuple):
    """Of all devices together."""

    flops: float
    """Operations of products and convolutions; a multiply-add is two."""
    bytes: float
    """What these read and write."""

    def plus(self, other: Cost, times: int = 1) -> Cost:
        """This and `times` the other."""
        return Cost(self.flops + times * other.flops, self.bytes + times * other.bytes)


def cost(jaxpr: Jaxpr) -> Cost:
    """The cost of running `jaxpr` once. A `while` of unknown length counts as one turn."""
    total = Cost(0.0, 0.0)
    for equation in jaxpr.eqns:
        name = equation.primitive.name
        if name in _PRODUCTS:
            moved = sum(_bytes(x.aval) for x in (*equation.invars, *equation.outvars))
            total = total.plus(Cost(_PRODUCTS[name](equation), float(moved)))
        elif name == "cond":
            costs = [cost(branch) for branch in _inside(equation)]
            total = total.plus(max(costs, key=lambda one: one.flops))
        else:
            for inside in _inside(equation):
                total = total.plus(cost(inside), _turns(equation))
    return total


def _turns(equation: JaxprEqn) -> int:
    """How often an equation's inner program runs, over all devices."""
    if equation.primitive.name == "scan":
        return equation.params["length"]
    if equation.primitive.name == "shard_map":
        return equation.params["mesh"].size
    return 1


def _inside(equation: JaxprEqn) -> Iterator[Jaxpr]:
    """The programs in an equation's parameters; what depends on the platform, for accelerators."""
    platforms = equation.params.get("branches_platforms")
    if platforms:
        yield equation.params["branches"][platforms.index(None)].jaxpr
        return
    for value in equation.params.values():
        for part in value if isinstance(value, tuple | list) else (value,):
            if isinstance(part, ClosedJaxpr):
                yield part.jaxpr
            elif isinstance(part, Jaxpr):
                yield part


def _bytes(aval: Any) -> int:
    return int(getattr(aval, "size", 0) * getattr(getattr(aval, "dtype", None), "itemsize", 0))


def _avals(equation: JaxprEqn) -> tuple[list[Any], Any]:
    """Shapes of a product's two operands and of its result."""
    return [variable.aval for variable in equation.invars[:2]], equation.outvars[0].aval


def _dot(equation: JaxprEqn) -> float:
    (contracted, _), _ = equation.params["dimension_numbers"]
    (left, _), out = _avals(equation)
    return 2.0 * math.prod(left.shape[i] for i in contracted) * out.size


def _convolution(equation: JaxprEqn) -> float:
    """Padding and the zeros of dilation are not counted, as XLA does not."""
    params = equation.params
    numbers = params["dimension_numbers"]
    operands, out = _avals(equation)
    inputs, kernel, outputs = operands[0].shape, operands[1].shape, out.shape
    spatial = zip(numbers.lhs_spec[2:], numbers.rhs_spec[2:], numbers.out_spec[2:], strict=True)
    pairs = 1
    for axis, (i, k, o) in enumerate(spatial):
        dilation = params["lhs_dilation"][axis]
        place = (
            np.arange(outputs[o])[:, None] * params["window_strides"][axis]
            + np.arange(kernel[k]) * params["rhs_dilation"][axis]
            - params["padding"][axis][0]
        )
        within = (place >= 0) & (place < (inputs[i] - 1) * dilation + 1)
        pairs *= int((within & (place % dilation == 0)).sum())
    batch, features = (outputs[i] for i in numbers.out_spec[:2])
    per_group = kernel[numbers.rhs_spec[1]]
    return 2.0 * batch * features * per_group * pairs / params["batch_group_count"]


_PRODUCTS = {"dot_general": _dot, "conv_general_dilated": _convolution}


def memory(jaxpr: Jaxpr) -> int:
    """Estimated bytes that a compiled `jaxpr` needs on one device: arguments, results, temporaries.

    Results of products, convolutions, reductions and loops have buffers, as have the operands of
    products and convolutions; everything else is fused into what reads it. A buffer lives from its
    making to its last reader; what is the same in every turn of a loop is made once and kept.
    """
    ends = (*jaxpr.invars, *jaxpr.constvars, *jaxpr.outvars)
    return sum(_bytes(end.aval) for end in ends) + _peak(jaxpr, 0)


# Other results that have buffers.
_WRITTEN = frozenset(
    ("reduce_sum", "reduce_max", "argmax", "gather", "sort", "random_bits", "threefry2x32")
)
_LOOPS = frozenset(("scan", "while", "cond", "shard_map"))


class _Step(NamedTuple):
    """An equation that is no plain call; variables are numbers."""

    equation: JaxprEqn
    reads: list[int]
    writes: list[int]


def _flatten(
    jaxpr: Jaxpr, names: dict[Any, int], sizes: list[int], converted: dict[Any, int]
) -> Iterator[_Step]:
    """The equations in order, plain calls inlined.

    `names` maps this program's variables to numbers and is added to, as are `sizes`, the bytes of
    each number, and `converted`, (number, type) -> the number of the conversion to that type.
    """

    def new(variable: Any) -> int:
        sizes.append(_bytes(variable.aval))
        return len(sizes) - 1

    def number(variable: Any) -> int:
        return new(variable) if isinstance(variable, Literal) else names[variable]

    for equation in jaxpr.eqns:
        called = list(_inside(equation))
        call = len(called) == 1 and equation.primitive.name not in _LOOPS
        if call and len(called[0].invars) == len(equation.invars):
            outer = [number(variable) for variable in equation.invars]
            inner: dict[Any, int] = dict(zip(called[0].invars, outer, strict=True))
            inner |= {variable: new(variable) for variable in called[0].constvars}
            yield from _flatten(called[0], inner, sizes, converted)
            for theirs, ours in zip(called[0].outvars, equation.outvars, strict=True):
                names[ours] = new(theirs) if isinstance(theirs, Literal) else inner[theirs]
        else:
            reads = [names[v] for v in equation.invars if not isinstance(v, Literal)]
            if equation.primitive.name == "convert_element_type" and reads:
                # A compiler converts the same weights once, whoever asks for it.
                key = reads[0], equation.params["new_dtype"]
                if key in converted:
                    names[equation.outvars[0]] = converted[key]
                    continue
                converted[key] = len(sizes)
            writes = [new(variable) for variable in equation.outvars]
            names.update(zip(equation.outvars, writes, strict=True))
            yield _Step(equation, reads, writes)


def _peak(jaxpr: Jaxpr, fixed: int) -> int:
    """Most bytes alive at once inside `jaxpr`, its inputs and outputs not counted.

    The first `fixed` inputs are the same in every turn of the loop around it.
    """
    sizes = [_bytes(variable.aval) for variable in (*jaxpr.invars, *jaxpr.constvars)]
    names: dict[Any, int] = {v: i for i, v in enumerate((*jaxpr.invars, *jaxpr.constvars))}
    same = set(range(fixed)) if fixed else set()
    needs: dict[int, frozenset[int]] = {}
    """Variable -> the buffers it is computed from."""
    born: dict[int, int] = {}
    dies: dict[int, int] = {}
    inner: list[int] = []
    for when, (equation, reads, writes) in enumerate(_flatten(jaxpr, names, sizes, {})):
        name = equation.primitive.name
        sources = frozenset[int]().union(*(needs.get(read, ()) for read in reads))
        if reads and same.issuperset(reads):
            same.update(writes)
        inner.append(0)
        if not (name in _PRODUCTS or name in _WRITTEN or name in _LOOPS):
            needs.update(dict.fromkeys(writes, sources))
            continue
        buffers = list(writes)
        if name in _PRODUCTS:
            buffers += [read for read in reads if read in needs and read not in born]
        if name in _LOOPS:
            constant = equation.params["num_consts"] if name == "scan" else 0
            inner[when] = max(_peak(inside, constant) for inside in _inside(equation))
        for buffer in buffers:
            needs[buffer], born[buffer] = frozenset((buffer,)), when
        dies.update(dict.fromkeys((*sources, *buffers), when))
    results = {names[v] for v in jaxpr.outvars if not isinstance(v, Literal)}
    for result in results:
        dies.update(dict.fromkeys(needs.get(result, ()), len(inner)))
    change = np.zeros(len(inner) + 2)
    for buffer, begin in born.items():
        if buffer not in same and buffer not in results:
            change[begin] += sizes[buffer]
            change[dies[buffer] + 1] -= sizes[buffer]
    alive = np.cumsum(change)[: len(inner)] + inner
    return int(alive.max(initial=0)) + sum(sizes[b] for b in born if b in same)


def main_loop(jaxpr: Jaxpr) -> tuple[int, Cost]:
    """Of the loop in which most is done: its number of turns, and what one of them costs."""
    found = [(0, Cost(0.0, 0.0))]
    for equation in jaxpr.eqns:
        for inside in _inside(equation):
            if equation.primitive.name == "scan":
                found.append((_turns(equation), cost(inside)))
            else:
                found.append(main_loop(inside))
    return max(found, key=lambda loop: loop[0] * loop[1].flops)


def collectives(program: str) -> dict[str, int]:
    """How often each kind of communication between devices stands in a compiled program's text."""
    return dict(Counter(found[1] for found in _COLLECTIVE.finditer(program)))


# With an opening parenthesis: an instruction, not a name. Asynchronous ones end in -start.
_COLLECTIVE = re.compile(
    r"\b(all-reduce|all-gather|all-to-all|collective-broadcast|collective-permute"
    r"|ragged-all-to-all|reduce-scatter)(?:-start)?\("
)
