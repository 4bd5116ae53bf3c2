"""What the project says of itself, for those who carry it on: held against the code."""

import ast
import re
import tomllib
from importlib.metadata import version
from pathlib import Path

import pytest
import yaml

import kldiv_dask
from kldiv_dask.evaluation.serialization import SCHEMA
from kldiv_dask.versions import LAYOUT, REVISION

ROOT = Path(__file__).parents[1]
GITHUB = ROOT / ".github"
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())


def section(name):
    """Give a section of the change log."""
    (text,) = re.findall(rf"^## .*`{name}`.*?\n(.*?)(?=^## |\Z)", LOG, re.MULTILINE | re.DOTALL)
    return text


LOG = (GITHUB / "CHANGELOG.md").read_text()


@pytest.mark.parametrize(
    ("name", "newest"), [("REVISION", REVISION), ("LAYOUT", LAYOUT), ("SCHEMA", SCHEMA)]
)
def test_the_change_log_has_every_number(name, newest):
    """If this fails, say in the change log what has changed, and why."""
    numbers = [int(number) for number in re.findall(r"^\| (\d+) \|", section(name), re.MULTILINE)]
    assert numbers == list(range(1, newest + 1))


def test_the_version_is_the_same_everywhere():
    assert kldiv_dask.__version__ == version("kldiv-dask") == PROJECT["project"]["version"]
    assert f"version {kldiv_dask.__version__}," in (ROOT / "README.md").read_text()


def names_in(path):
    """Give the names that a module defines."""
    found = set()
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            found.add(node.name)
        elif isinstance(node, ast.Assign):
            found |= {target.id for target in node.targets if isinstance(target, ast.Name)}
    return found


def test_examples_of_style_exist():
    text = (GITHUB / "CONTRIBUTING.md").read_text().split("## Style")[1]
    examples = re.findall(r"`(\w+)` in `([\w/.]+)`", text)
    assert len(examples) == 9
    for name, path in examples:
        assert name in names_in(ROOT / path), f"{path} has no {name}"


def test_workflows_run_files_that_exist():
    commands = ""
    for path in sorted((GITHUB / "workflows").glob("*.yml")):
        for job in yaml.safe_load(path.read_text())["jobs"].values():
            commands += " ".join(step.get("run", "") for step in job["steps"]) + " "
    files = re.findall(r"(?:\.ci|tests)/\S+", commands)
    assert {".ci/run", "tests/test_bits.py"} <= set(files)
    assert [file for file in files if not (ROOT / file).exists()] == []


def test_data_are_in_the_table_of_origins():
    text = (ROOT / "tests" / "data" / "README.md").read_text()
    folders = {path.parent.name for path in (ROOT / "tests" / "data").glob("*/*")}
    rows = set(re.findall(r"^\| `(\w+)` \|", text, re.MULTILINE))
    assert rows == folders - {"__pycache__"}


def test_the_readme_is_short():
    assert len((ROOT / "README.md").read_text().splitlines()) <= 230


# Docstrings of the package

PACKAGE = Path(kldiv_dask.__file__).parent
Definition = ast.Module | ast.FunctionDef | ast.ClassDef
TREES = {
    path.relative_to(ROOT): ast.parse(path.read_text()) for path in sorted(PACKAGE.rglob("*.py"))
}
DOCUMENTED = [
    (path, node, docstring)
    for path, tree in TREES.items()
    for node in ast.walk(tree)
    if isinstance(node, Definition) and (docstring := ast.get_docstring(node))
]


def numpydoc_section(docstring, title):
    """Give the lines of a section of a docstring that are not indented."""
    match = re.search(rf"^{title}\n-+\n(.*?)(?=^\S[^\n]*\n---|\Z)", docstring, re.M | re.S)
    return re.findall(r"^\S.*", match[1], re.MULTILINE) if match else []


def parameters_of(node):
    """Give the names of the parameters of a function, or of the constructor of a class."""
    if isinstance(node, ast.ClassDef):
        functions = {item.name: item for item in node.body if isinstance(item, ast.FunctionDef)}
        if "__init__" not in functions:
            fields = [item for item in node.body if isinstance(item, ast.AnnAssign)]
            return [field.target.id for field in fields]
        node = functions["__init__"]
    args = node.args
    names = [arg.arg for arg in [*args.posonlyargs, *args.args] if arg.arg not in ("self", "cls")]
    names += [f"*{args.vararg.arg}"] if args.vararg else []
    names += [arg.arg for arg in args.kwonlyargs]
    return names + ([f"**{args.kwarg.arg}"] if args.kwarg else [])


def test_documented_parameters_are_those_of_the_signature():
    compared = 0
    differing = []
    for path, node, docstring in DOCUMENTED:
        lines = numpydoc_section(docstring, "Parameters")
        described = [name for line in lines for name in line.partition(" : ")[0].split(", ")]
        if described and described != parameters_of(node):
            place = f"{path}:{node.lineno} {node.name}"
            differing.append(f"{place}: {described}, takes {parameters_of(node)}")
        compared += bool(described)
    assert compared > 30
    assert differing == []


def test_docstrings_speak_of_names_that_exist():
    """A name in capitals in a type, or in code, is one that the package has."""
    exists = {
        name
        for tree in TREES.values()
        for node in ast.walk(tree)
        for name in (
            getattr(node, "id", ""),
            getattr(node, "attr", ""),
            getattr(node, "name", "") or "",
        )
    }
    speaks_of = {"NumPy", "None", "True", "False"}
    unknown = []
    for path, node, docstring in DOCUMENTED:
        titles = ("Parameters", "Returns", "Yields", "Attributes")
        lines = [line for title in titles for line in numpydoc_section(docstring, title)]
        lines += re.findall(r"(?<!`)`(\w+)`(?!`)", docstring)
        names = set(re.findall(r"(?<![\w.])[A-Z]\w+", " ".join(lines)))
        place = f"{path}:{getattr(node, 'lineno', 1)}"
        unknown += [f"{place}: {name}" for name in sorted(names - exists - speaks_of)]
    assert unknown == []
