"""The picture of the house, held against its imports."""

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


class Room(NamedTuple):
    """What a module, or a folder of modules, may import."""

    rooms: str  # below it
    packages: str = ""
    on_use: str = ""  # packages again, but not before they are needed


# From the roof down: imports only point to rows below.
HOUSE = {
    "__init__": Room("evaluation functional storage config"),
    "cli": Room(
        "cluster evaluation functional options storage workers",
        "click",
        on_use="dask distributed numpy",
    ),
    "workers": Room("", "distributed"),
    "cluster": Room("versions", on_use="dask distributed"),
    "evaluation": Room(
        "functional labelled graph statistics align arrays partial options storage config versions "
        "kernels",
        "dask numpy",
        on_use="distributed matplotlib scipy",
    ),
    "functional": Room("labelled graph align partial options versions kernels", "dask numpy"),
    "labelled": Room("align arrays options", "dask numpy", on_use="xarray"),
    "graph": Room("align statistics partial options storage config kernels", "dask numpy"),
    "statistics": Room("partial kernels", "numpy"),
    "align": Room("arrays options", "dask numpy"),
    "arrays": Room("options", "dask numpy"),
    "partial": Room("kernels", "numpy"),
    "kernels": Room("", "numpy numba llvmlite"),
    "options": Room("", "numpy", on_use="ml_dtypes"),
    "storage": Room("config", "dask numpy", on_use="fsspec h5py ml_dtypes safetensors zarr"),
    "config": Room("", "dask"),
    "versions": Room(""),
}

# Of a room below, a room may know one thing only.
DOORS = {("functional", "kernels"): {"kldiv_dask.kernels.pointwise.Term"}}


class Import(NamedTuple):
    room: str
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


def room_of(name: str) -> str | None:
    """The room that a name belongs to; None if it is not of the house."""
    package, _, rest = name.partition(".")
    if package != "kldiv_dask":
        return None
    room = rest.partition(".")[0]
    return room if room in HOUSE else "__init__"


def test_the_picture_shows_every_room_and_no_other() -> None:
    rooms = {path.name.removesuffix(".py") for path in FOLDER.iterdir() if path.suffix == ".py"}
    rooms |= {path.parent.name for path in FOLDER.glob("*/__init__.py")}
    assert rooms == set(HOUSE)


def test_the_picture_itself_points_down() -> None:
    order = list(HOUSE)
    for room, allowed in HOUSE.items():
        for other in allowed.rooms.split():
            assert order.index(other) > order.index(room), f"{room} → {other}"


def test_imports_of_the_house() -> None:
    assert len(IMPORTS) > 50
    arrows = set()
    for room, place, name, _ in IMPORTS:
        assert not name.startswith("."), f"{place}: relative import"
        other = room_of(name)
        if other in (None, room):
            continue
        arrows.add((room, other))
        assert other in HOUSE[room].rooms.split(), f"{place}: {room} → {other} is not allowed"
        assert name in DOORS.get((room, str(other)), {name}), f"{place}: {name}"
    assert arrows >= {("functional", "graph"), ("graph", "partial"), ("partial", "kernels")}


def test_imports_of_other_packages() -> None:
    for room, place, name, on_use in IMPORTS:
        package = name.partition(".")[0]
        if package in sys.stdlib_module_names or room_of(name):
            continue
        allowed = HOUSE[room].packages.split() + HOUSE[room].on_use.split() * on_use
        assert package in allowed, f"{place}: {room} imports {package}"


@pytest.mark.parametrize(
    ("package", "rooms"),
    [
        ("numba", {"kernels"}),
        ("llvmlite", {"kernels"}),
        ("click", {"cli"}),
        ("scipy", {"evaluation"}),
        ("xarray", {"labelled"}),
        (
            "dask",
            {
                "cli",
                "evaluation",
                "functional",
                "labelled",
                "graph",
                "align",
                "arrays",
                "storage",
                "cluster",
                "config",
            },
        ),
    ],
)
def test_who_knows_a_package(package: str, rooms: set[str]) -> None:
    assert {i.room for i in IMPORTS if i.name.partition(".")[0] == package} == rooms


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
