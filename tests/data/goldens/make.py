"""Ask torch for the goldens and store them: ``python -m tests.data.goldens.make``.

Needs torch 2.13.0 and ml_dtypes. Running it again writes the same bytes: every value comes from a
seed, and torch is held to one thread and to AVX2, which its rounding depends on.
"""

import itertools
import os
import warnings
from collections.abc import Iterator
from typing import Any

import numpy as np

from tests.data.goldens import FLAGS, PATH
from tests.helpers import cases
from tests.helpers.cases import FLOATS, REDUCTIONS, SHAPES, Array, Shape, dtype_of
from tests.reference import finfo

TORCH = "2.13.0"
PAIRS = list(itertools.product(FLOATS, FLOATS))
BFLOAT16_PAIRS = [
    pair for pair in itertools.product((*FLOATS, "bfloat16"), repeat=2) if "bfloat16" in pair
]
BFLOAT16_SHAPES = [((), ()), ((5,), (5,)), ((), (2, 3)), ((2, 3), ()), ((2, 1, 4), (3, 1))]
SHAPE = (3, 7)

Pair = tuple[str, str]
Operands = tuple[Array, Array]


def ordinary(shapes: tuple[Shape, Shape], types: Pair, log_target: bool) -> Operands:
    """A model's log-probabilities, and a target's probabilities or their logarithms."""
    rng = np.random.default_rng(20)
    draw = cases.log_probabilities if log_target else cases.probabilities
    return (
        cases.log_probabilities(rng, shapes[0], dtype_of(types[0])),
        draw(rng, shapes[1], dtype_of(types[1])),
    )


def edited(types: Pair, log_target: bool, **edits: dict[tuple[int, int], float]) -> Operands:
    """Ordinary operands with some elements replaced; edits of `input` and of `target`."""
    operands = ordinary((SHAPE, SHAPE), types, log_target)
    for operand, name in zip(operands, ("input", "target"), strict=True):
        for place, value in edits.get(name, {}).items():
            operand[place] = value
    return operands


def drawn(types: Pair, input: Array, target: Array) -> Operands:
    return cases.narrow(input, dtype_of(types[0])), cases.narrow(target, dtype_of(types[1]))


def value_sets(types: Pair, log_target: bool) -> Iterator[tuple[str, Operands]]:
    """Yield named operands of one shape, each with one thing about them that is not ordinary."""
    a, b, c = (0, 0), (1, 2), (2, 6)
    inf, nan = np.inf, np.nan
    absent = -inf if log_target else 0.0
    largest, normal = ([float(getattr(finfo(dtype_of(name)), attribute)) for name in types]
                       for attribute in ("max", "smallest_normal"))  # fmt: skip

    def edit(**edits: dict[tuple[int, int], float]) -> Operands:
        return edited(types, log_target, **edits)

    yield "absent", edit(target={a: absent, b: -abs(absent)})
    yield "impossible", edit(input={b: -inf})
    yield "certain", edit(input={b: inf})
    yield "masked", edit(input={b: -inf}, target={b: absent})
    yield "opposite", edit(input={a: inf, c: -inf})
    yield "nan input", edit(input={c: nan})
    yield "nan target", edit(target={c: nan})
    yield "infinite target", edit(target={b: inf})
    yield "negative target", edit(target={a: -1.0})
    yield "vanishing", edit(target={b: -2000.0 if log_target else normal[1] / 8})
    yield "overflowing", edit(target={b: 2000.0 if log_target else largest[1]}, input={c: -3.0})

    # exp(-20) is 0 in float16 and a normal number in float32
    yield "faint", edit(target={b: -20.0 if log_target else normal[1]}, input={b: -inf})

    rng = np.random.default_rng(21)
    log_model = rng.normal(0, 10, SHAPE)
    raw = rng.normal(0, 2, SHAPE) if log_target else rng.uniform(0, 20, SHAPE)
    yield "unnormalised", drawn(types, log_model, raw)

    logs = np.float64(ordinary((SHAPE, SHAPE), types, True)[0])
    yield "identical", drawn(types, logs, logs if log_target else np.exp(logs))

    ones = np.full(SHAPE, 0.0 if log_target else 1.0)
    yield "large", drawn(types, largest[0] * rng.uniform(-1, 0.6, SHAPE), ones)
    # a sum that overflows and quotients that do not
    yield "heap", drawn(types, np.full(SHAPE, -0.1 * largest[0]), ones)
    span = np.resize(cases.canceling(rng, 20, dtype_of(types[0]), log_target)[0], SHAPE)
    yield "wide", drawn(types, span, ones)

    if log_target:
        yield "tiny", drawn(types, log_model, np.log(normal[1]) - rng.uniform(0, 5, SHAPE))
        yield "huge", drawn(types, log_model, np.log(largest[1]) - rng.uniform(-1, 3, SHAPE))
    else:
        yield "tiny", drawn(types, log_model, normal[1] * rng.random(SHAPE))
        yield "huge", drawn(types, log_model, largest[1] * rng.random(SHAPE))


class Goldens:
    """The tables of `goldens.npz`, being filled."""

    def __init__(self) -> None:
        self.rows: list[dict[str, Any]] = []
        self.arrays: dict[tuple[str, Shape, bytes], int] = {}

    def row(self, array: Array) -> int:
        key = (array.dtype.name, array.shape, array.tobytes())
        return self.arrays.setdefault(key, len(self.arrays))

    def add(self, values: str, operands: Operands, module: bool = False, **options: Any) -> None:
        import torch

        tensors = [_tensor(operand) for operand in operands]
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            if module:
                result = torch.nn.KLDivLoss(**options)(*tensors)
            else:
                result = torch.nn.functional.kl_div(*tensors, **options)
        row = {"values": values, "module": module, "warnings": len(caught), **options}
        row["flagged"] = "reduce" in options
        for flag in ("size_average", "reduce"):
            row[flag] = FLAGS.index(options.get(flag))
        arrays = (*operands, _array(result))
        row |= zip(("input", "target", "result"), map(self.row, arrays), strict=True)
        self.rows.append(row)

    def save(self) -> None:
        table: dict[str, Any] = {"torch_version": TORCH}
        pools: dict[str, bytes] = {}
        starts, shapes = [], []
        for name, shape, data in self.arrays:
            pool = pools.get(name, b"")
            starts.append(len(pool) // dtype_of(name).itemsize)
            shapes.append([*shape, *[-1] * (4 - len(shape))])
            pools[name] = pool + data
        for name, pool in sorted(pools.items()):
            plain = "uint16" if name == "bfloat16" else name
            table[f"values_{name}"] = np.frombuffer(pool, plain)
        table["array_dtype"] = np.array([name for name, _, _ in self.arrays])
        table["array_start"] = np.array(starts, np.int32)
        table["array_shape"] = np.array(shapes, np.int8)
        for column in self.rows[0]:
            values = np.array([row[column] for row in self.rows])
            small = values.dtype.kind == "i"
            table[f"case_{column}"] = values.astype(np.int16) if small else values
        np.savez_compressed(PATH, allow_pickle=False, **table)


def _tensor(array: Array) -> Any:
    import torch

    if array.dtype.name == "bfloat16":
        return torch.from_numpy(array.view(np.int16).copy()).view(torch.bfloat16)
    return torch.from_numpy(array.copy())


def _array(tensor: Any) -> Array:
    import torch

    if tensor.dtype == torch.bfloat16:
        return tensor.view(torch.int16).numpy().view(dtype_of("bfloat16"))
    return tensor.numpy()


def collect() -> Goldens:
    goldens = Goldens()
    shapes_of = [*itertools.product(PAIRS, SHAPES)]
    shapes_of += itertools.product(BFLOAT16_PAIRS, BFLOAT16_SHAPES)
    for reduction, log_target in itertools.product(REDUCTIONS, (False, True)):
        options = {"reduction": reduction, "log_target": log_target}
        for types, shapes in shapes_of:
            goldens.add("ordinary", ordinary(shapes, types, log_target), **options)
        for types in (*PAIRS, *BFLOAT16_PAIRS):
            for values, operands in value_sets(types, log_target):
                goldens.add(values, operands, **options)

    for log_target, name in itertools.product((False, True), (*FLOATS, "bfloat16")):
        special = cases.special_values(dtype_of(name))
        for value in special:
            operands = special, np.full_like(special, value)
            goldens.add(f"special, target {value}", operands,
                        reduction="none", log_target=log_target)  # fmt: skip

        operands = ordinary(((2, 3), (2, 3)), (name, name), log_target)
        for module in (False, True):
            goldens.add("ordinary", operands, module,
                        reduction="elementwise_mean", log_target=log_target)  # fmt: skip
        for size_average, reduce, reduction, module in itertools.product(
            FLAGS, FLAGS, REDUCTIONS, (False, True)
        ):
            if name in ("float32", "bfloat16"):
                goldens.add("ordinary", operands, module, size_average=size_average,
                            reduce=reduce, reduction=reduction,
                            log_target=log_target)  # fmt: skip
    return goldens


def main() -> None:
    os.environ["ATEN_CPU_CAPABILITY"] = "avx2"
    import torch

    if torch.__version__.split("+")[0] != TORCH:
        raise SystemExit(f"torch is {torch.__version__}; the goldens are those of torch {TORCH}")
    torch.set_num_threads(1)
    goldens = collect()
    goldens.save()
    print(f"{len(goldens.rows)} cases, {len(goldens.arrays)} arrays, {PATH.stat().st_size} bytes")


if __name__ == "__main__":
    main()
