"""Results of `torch.nn.functional.kl_div`, stored so that tests can do without torch.

`make.py` writes `goldens.npz`. The file holds every distinct array once: all elements of one type
end to end in `values_<type>` (bfloat16 as its uint16 bit patterns), and one row an array in the
table `array_dtype`, `array_start`, `array_shape` (padded with -1). A second table has one row a
case in `case_<column>`, where `input`, `target` and `result` are row numbers of the first.
"""

from collections.abc import Collection
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from tests.helpers.cases import Array, dtype_of

PATH = Path(__file__).with_name("goldens.npz")

# How the legacy flags are stored.
FLAGS = (None, False, True)


class Golden(NamedTuple):
    """One call and what torch returned."""

    values: str
    """What is in the operands: the name of a set of values in `make.py`."""
    module: bool
    """Whether `KLDivLoss(**options)(input, target)` was called or `kl_div`."""
    input: Array
    target: Array
    options: dict[str, Any]
    result: Array
    warnings: int

    @property
    def legacy(self) -> bool:
        return "reduce" in self.options or self.options["reduction"] == "elementwise_mean"

    @property
    def name(self) -> str:
        operands = ", ".join(f"{a.dtype.name}{a.shape}" for a in (self.input, self.target))
        options = ", ".join(f"{key}={value}" for key, value in self.options.items())
        function = "KLDivLoss" if self.module else "kl_div"
        return f"{function}({operands}, {options}) of {self.values} values"


def torch_version() -> str:
    with np.load(PATH) as stored:
        return str(stored["torch_version"])


def load(types: Collection[str]) -> list[Golden]:
    """The cases whose operands both have one of the given types."""
    with np.load(PATH) as stored:
        table = {name: stored[name] for name in stored.files}

    def array(row: int) -> Array:
        dtype, start = str(table["array_dtype"][row]), table["array_start"][row]
        shape = [length for length in table["array_shape"][row].tolist() if length >= 0]
        flat = table[f"values_{dtype}"][start : start + int(np.prod(shape))]
        return flat.view(dtype_of(dtype)).reshape(shape)

    def golden(case: dict[str, Any]) -> Golden:
        options = {"reduction": case["reduction"], "log_target": case["log_target"]}
        if case["flagged"]:
            options |= {name: FLAGS[case[name]] for name in ("size_average", "reduce")}
        x, t, result = (array(case[name]) for name in ("input", "target", "result"))
        return Golden(case["values"], case["module"], x, t, options, result, case["warnings"])

    columns = {
        name.removeprefix("case_"): column.tolist()
        for name, column in table.items()
        if name.startswith("case_")
    }
    rows = (dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True))
    wanted = np.isin(table["array_dtype"], list(types))
    return [golden(case) for case in rows if wanted[case["input"]] and wanted[case["target"]]]
