"""The layers of the package, held against its imports."""

import ast
import importlib
import inspect
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

import kldiv_dask

FOLDER = Path(kldiv_dask.__file__).parent


class Layer(NamedTuple):
    """What a module, or a folder of modules, may import."""

    layers: str  # below it
    packages: str = ""
    on_use: str = ""  # packages again, but not before they are needed


# From the top down: imports only point to layers below.
LAYERS = {
    "__init__": Layer("evaluation functional storage config progress"),
    "cli": Layer(
        "evaluation functional report options progress storage versions dtypes",
        "click distributed",  # the plugin in cli/warmup, which is imported on use
        on_use="dask numpy",
    ),
    "evaluation": Layer(
        "report xarray_support graph statistics align arrays partial_sum options grid storage "
        "config progress versions kernels dtypes",
        "dask numpy",
        on_use="distributed",
    ),
    "functional": Layer(
        "xarray_support graph align partial_sum options progress versions kernels dtypes",
        "dask numpy",
    ),
    "report": Layer("extras", on_use="jinja2 matplotlib"),
    "xarray_support": Layer("align arrays options", "dask numpy", on_use="xarray"),
    "graph": Layer(
        "align statistics partial_sum options grid storage config kernels", "dask numpy"
    ),
    "statistics": Layer("partial_sum kernels", "numpy", on_use="scipy"),
    "align": Layer("arrays dtypes options", "dask numpy"),
    "arrays": Layer("dtypes", "dask numpy"),
    "partial_sum": Layer("kernels", "numpy"),
    "kernels": Layer("grid dtypes", "numpy numba llvmlite"),
    "grid": Layer(""),
    "options": Layer("dtypes", "numpy"),
    "storage": Layer("config dtypes extras", "dask numpy"),
    "config": Layer("", "dask"),
    "progress": Layer("", "dask"),
    "dtypes": Layer("extras", on_use="numpy"),
    "extras": Layer(""),
    "versions": Layer(""),
}

# Of a layer below, a layer may import one name only.
EXCEPTIONS = {("functional", "kernels"): {"kldiv_dask.kernels.pointwise.PointwiseSpec"}}


class Import(NamedTuple):
    layer: str
    """Where the import is written."""
    place: str
    """File and line, for the message."""
    name: str
    """What is imported, in full."""
    on_use: bool
    """Whether it is inside a function, or for type checkers alone."""


def imports_in(tree: ast.AST, on_use: bool = False) -> Iterator[tuple[ast.stmt, str, bool]]:
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield node, alias.name, on_use
        elif isinstance(node, ast.ImportFrom):
            for alias in node.names:
                yield node, f"{'.' * node.level}{node.module or ''}.{alias.name}", on_use
        else:
            inside = isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
            typing = isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"
            yield from imports_in(node, on_use or inside or typing)


def every_import() -> list[Import]:
    found = []
    for path in sorted(FOLDER.rglob("*.py")):
        relative = path.relative_to(FOLDER)
        for node, name, on_use in imports_in(ast.parse(path.read_text())):
            place = f"{relative}:{node.lineno}"
            found.append(Import(relative.parts[0].removesuffix(".py"), place, name, on_use))
    return found


IMPORTS = every_import()


def layer_of(name: str) -> str | None:
    """The layer that a name belongs to; None if it is not of the package."""
    package, _, rest = name.partition(".")
    if package != "kldiv_dask":
        return None
    layer = rest.partition(".")[0]
    return layer if layer in LAYERS else "__init__"


def test_every_module_is_in_a_layer() -> None:
    layers = {path.name.removesuffix(".py") for path in FOLDER.iterdir() if path.suffix == ".py"}
    layers |= {path.parent.name for path in FOLDER.glob("*/__init__.py")}
    assert layers == set(LAYERS)


def test_layers_point_down() -> None:
    order = list(LAYERS)
    for layer, allowed in LAYERS.items():
        for other in allowed.layers.split():
            assert order.index(other) > order.index(layer), f"{layer} → {other}"


def test_imports_between_layers() -> None:
    assert len(IMPORTS) > 50
    arrows = set()
    for layer, place, name, _ in IMPORTS:
        assert not name.startswith("."), f"{place}: relative import"
        other = layer_of(name)
        if other in (None, layer):
            continue
        arrows.add((layer, other))
        assert other in LAYERS[layer].layers.split(), f"{place}: {layer} → {other} is not allowed"
        assert name in EXCEPTIONS.get((layer, str(other)), {name}), f"{place}: {name}"
    assert arrows >= {("functional", "graph"), ("graph", "partial_sum"), ("partial_sum", "kernels")}


def test_imports_of_other_packages() -> None:
    for layer, place, name, on_use in IMPORTS:
        package = name.partition(".")[0]
        if package in sys.stdlib_module_names or layer_of(name):
            continue
        allowed = LAYERS[layer].packages.split() + LAYERS[layer].on_use.split() * on_use
        assert package in allowed, f"{place}: {layer} imports {package}"


@pytest.mark.parametrize(
    ("package", "layers"),
    [
        ("numba", {"kernels"}),
        ("llvmlite", {"kernels"}),
        ("click", {"cli"}),
        ("scipy", {"statistics"}),
        ("xarray", {"xarray_support"}),
        (
            "dask",
            {
                "cli",
                "evaluation",
                "functional",
                "xarray_support",
                "graph",
                "align",
                "arrays",
                "storage",
                "config",
                "progress",
            },
        ),
    ],
)
def test_who_knows_a_package(package: str, layers: set[str]) -> None:
    assert {i.layer for i in IMPORTS if i.name.partition(".")[0] == package} == layers


# What importing does

HEAVY = (
    "click distributed fsspec h5py matplotlib ml_dtypes pandas safetensors scipy torch xarray zarr"
)

PROGRAM = """
import sys
import dask.array, numba  # which bring in what they like
from numba.core import event

before = set(sys.modules)
with event.install_recorder("numba:compile") as recorder:
    import kldiv_dask
    assert "kldiv_dask.functional" not in sys.modules  # not for the sake of `dask --help`
    from kldiv_dask import *
added = set(sys.modules) - before
assert "kldiv_dask.kernels.pointwise" in added
print(len(recorder.buffer), *added & set(sys.argv[1].split()))
"""


def test_importing_brings_in_nothing_heavy_and_compiles_nothing() -> None:
    command = [sys.executable, "-c", PROGRAM, HEAVY]
    output = subprocess.check_output(command, text=True, cwd=FOLDER.parent)
    assert output == "0\n"


# What is public

PUBLIC = [
    (module, name)
    for module in ("kldiv_dask", "kldiv_dask.storage")
    for name in importlib.import_module(module).__all__
]


def sections(documentation: str) -> dict[str, str]:
    """The numpydoc sections of a docstring, by title."""
    parts = re.split(r"^(\w[\w ]*)\n-{3,}\n", "\n" + documentation, flags=re.MULTILINE)
    return {"Summary": parts[0], **dict(zip(parts[1::2], parts[2::2], strict=True))}


@pytest.mark.parametrize(("module", "name"), PUBLIC)
def test_public_names_are_documented(module: str, name: str) -> None:
    public = getattr(importlib.import_module(module), name)
    found = sections(inspect.cleandoc(public.__doc__))
    assert found["Summary"].strip()
    if inspect.isclass(public) and issubclass(public, Exception):
        return
    assert ">>> " in found["Examples"]
    if inspect.isclass(public) and issubclass(public, tuple):
        # the fields of a named tuple are described one by one, below their names
        body = ast.parse(inspect.getsource(public)).body[0].body  # type: ignore[attr-defined]
        kinds = [
            type(statement) for statement in body if not isinstance(statement, ast.FunctionDef)
        ]
        assert kinds == [ast.Expr, *[ast.AnnAssign, ast.Expr] * len(public._fields)]  # type: ignore[attr-defined]
        return
    described = [
        parameter
        for line in re.findall(r"^(\w.*)$", found["Parameters"], flags=re.MULTILINE)
        for parameter in line.partition(" : ")[0].split(", ")
    ]
    signature = inspect.signature(public)
    assert described == list(signature.parameters)
    if not inspect.isclass(public):
        assert found["Returns"].strip()
        assert found["Raises"].strip()


# DESIGN.md


def test_the_design_names_files_and_layers_that_exist() -> None:
    text = (FOLDER / "DESIGN.md").read_text()
    names = re.findall(r"`((?:[\w.]+/)*[\w.]+\.(?:py|md|toml|yaml)|[\w./]+/)`", text)
    assert len(names) > 30
    for name in names:
        assert (FOLDER / name).exists() or (FOLDER.parent / name).exists(), name
    layers = set(re.findall(r"\w+", text.split("## Layers")[1].split("Only")[0])) & set(LAYERS)
    assert layers == set(LAYERS) - {"__init__"}


def defined_in(path: Path) -> set[str]:
    """The functions, classes and constants of a module, with the methods and parameters."""
    nodes = list(ast.walk(ast.parse(path.read_text())))
    names = {n.name for n in nodes if isinstance(n, ast.FunctionDef | ast.ClassDef)}
    names |= {n.arg for n in nodes if isinstance(n, ast.arg)}
    return names | {n.id for n in nodes if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Store)}


def test_what_the_design_names_is_defined() -> None:
    text = (FOLDER / "DESIGN.md").read_text()
    everywhere = set(LAYERS).union(*map(defined_in, FOLDER.rglob("*.py")))
    extras = {"all"}
    names = set(re.findall(r"`(\w+)`", text))
    assert len(names) > 20
    assert names - everywhere - extras == set()


def test_what_the_design_places_in_a_file_is_there() -> None:
    text = (FOLDER / "DESIGN.md").read_text()
    placed = re.findall(r"`(\w+)`\s+(?:in|of)\s+`kldiv_dask/([\w/.]+\.py)`", text)
    assert len(placed) >= 10
    for name, path in placed:
        assert name in defined_in(FOLDER / path), (name, path)
