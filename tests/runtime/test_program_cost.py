"""Costs read off jaxprs: operations against XLA's own count, memory against counting by hand."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import pytest

from emcid_jax.runtime import parallel, program_cost

F32 = 4


def shape(*sizes: int, dtype: Any = jnp.float32) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(sizes, dtype)


def jaxpr_of(function: Any, *arguments: Any) -> Any:
    return jax.make_jaxpr(function)(*arguments).jaxpr


def convolve(**options: Any) -> Any:
    def run(x: jax.Array, kernel: jax.Array) -> jax.Array:
        settings = {"window_strides": (1, 1), "padding": "SAME"} | options
        layout = ("NHWC", "HWIO", "NHWC")
        return jax.lax.conv_general_dilated(x, kernel, dimension_numbers=layout, **settings)

    return run


@pytest.mark.parametrize(
    ("function", "arguments"),
    [
        (lambda a, b: jnp.einsum("bij,bkj->bik", a, b), (shape(3, 4, 5), shape(3, 6, 5))),
        (convolve(), (shape(2, 9, 7, 6), shape(3, 3, 6, 4))),
        (convolve(window_strides=(2, 2)), (shape(2, 9, 8, 6), shape(3, 3, 6, 4))),
        (
            convolve(padding=((1, 2), (2, 1)), lhs_dilation=(2, 2)),
            (shape(2, 5, 4, 6), shape(3, 3, 6, 4)),
        ),
        (convolve(rhs_dilation=(2, 1)), (shape(2, 9, 7, 6), shape(3, 3, 6, 4))),
        (convolve(feature_group_count=3), (shape(2, 5, 5, 6), shape(3, 3, 2, 9))),
    ],
)
def test_operations_are_those_that_xla_counts(function: Any, arguments: Any) -> None:
    wanted = jax.jit(function).lower(*arguments).cost_analysis()["flops"]  # type: ignore[index]
    assert program_cost.cost(jaxpr_of(function, *arguments)).flops == wanted


def test_loops_branches_and_calls_count_as_often_as_they_run() -> None:
    @jax.jit
    def square(x: jax.Array) -> jax.Array:
        return x @ x

    def program(x: jax.Array, flag: jax.Array) -> jax.Array:
        x, _ = jax.lax.scan(lambda carry, _: (square(square(carry)), None), x, length=7)
        x = jax.lax.map(lambda row: row @ x, x.reshape(2, 4, 8)).reshape(8, 8)
        return jax.lax.cond(flag, square, lambda y: y, x)

    got = program_cost.cost(jaxpr_of(program, shape(8, 8), shape(dtype=bool)))
    one = 2 * 8**3
    assert got.flops == (14 + 1 + 1) * one
    whole, half = 8 * 8 * F32, 4 * 8 * F32
    assert got.bytes == 15 * 3 * whole + 2 * (half + whole + half)
    turns, step = program_cost.main_loop(jaxpr_of(program, shape(8, 8), shape(dtype=bool)))
    assert (turns, step.flops) == (7, 2 * one)


def test_what_depends_on_the_platform_counts_as_on_an_accelerator() -> None:
    def program(x: jax.Array) -> jax.Array:
        return jax.lax.platform_dependent(x, cpu=lambda y: y @ y @ y, default=lambda y: y @ y)

    assert program_cost.cost(jaxpr_of(program, shape(8, 8))).flops == 2 * 8**3


def test_what_devices_do_side_by_side_is_added_up() -> None:
    mesh = parallel.make_mesh(jax.devices()[:4])
    split = parallel.SPLIT
    local = jax.shard_map(lambda x: x @ x.T, mesh=mesh, in_specs=split, out_specs=split)
    assert program_cost.cost(jaxpr_of(local, shape(8, 16))).flops == 4 * 2 * 2 * 16 * 2


def test_memory_is_what_a_person_counts() -> None:
    n, m = 64, 256
    wide, narrow = n * m * F32, n * n * F32

    def program(x: jax.Array, up: jax.Array, down: jax.Array) -> jax.Array:
        hidden = jnp.tanh(x @ up) * 2  # product, and its fused successors as the next one's operand
        return (hidden @ down).sum()

    arguments = narrow + wide + wide + F32
    # At the second product: its operand and its result; the first product was just read.
    got = program_cost.memory(jaxpr_of(program, shape(n, n), shape(n, m), shape(m, n)))
    assert got == arguments + wide + wide + narrow


def test_weights_converted_in_a_loop_are_converted_once_and_kept() -> None:
    n = 32
    half = n * n * 2

    def program(x: jax.Array, weights: jax.Array) -> jax.Array:
        def turn(carry: jax.Array, _: None) -> tuple[jax.Array, None]:
            first = carry @ weights.astype(jnp.bfloat16)
            return first @ weights.astype(jnp.bfloat16), None

        return jax.lax.scan(turn, x, length=5)[0]

    arguments = half + 2 * half + half
    got = program_cost.memory(jaxpr_of(program, shape(n, n, dtype=jnp.bfloat16), shape(n, n)))
    # The conversion, and the first product beside the loop's own state.
    assert got == arguments + half + half


def test_a_reverse_pass_keeps_its_operands() -> None:
    """Deeper networks keep more, each layer its product and tanh of it; only a reverse pass."""

    def network(depth: int) -> Any:
        def run(x: jax.Array, weights: jax.Array) -> jax.Array:
            for _ in range(depth):
                x = jnp.tanh(x @ weights)
            return x.sum()

        return run

    n = 16
    arguments = shape(n, n), shape(n, n)
    forward = [program_cost.memory(jaxpr_of(network(d), *arguments)) for d in (4, 8)]
    reverse = [program_cost.memory(jaxpr_of(jax.grad(network(d)), *arguments)) for d in (4, 8)]
    assert forward[0] == forward[1]
    assert reverse[1] - reverse[0] == 4 * 2 * n * n * F32


def test_collectives_are_found_in_a_compiled_program() -> None:
    mesh = parallel.make_mesh(jax.devices()[:8])
    split, whole = parallel.sharded(mesh), parallel.replicated(mesh)

    def text(out: Any) -> str:
        program = jax.jit(lambda x: jnp.sin(x), in_shardings=split, out_shardings=out)
        return program.lower(shape(8, 4)).compile().as_text() or ""

    assert program_cost.collectives(text(split)) == {}
    assert program_cost.collectives(text(whole)) == {"all-gather": 1}
    asynchronous = "%x = f32[8]{0} all-reduce-start(%y), channel_id=1\n%all-gather.3 = f32[8] add("
    assert program_cost.collectives(asynchronous) == {"all-reduce": 1}
