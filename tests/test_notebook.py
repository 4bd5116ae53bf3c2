"""The notebook for analysts: run as JupyterLab would, and kept without what a run leaves in it."""

import itertools
import json
import os
import re
import sys

import nbformat
import pytest
from nbclient import NotebookClient

from tests.helpers.deploy_files import DEPLOY, ROOT

NOTEBOOK = DEPLOY / "jupyter" / "analysis.ipynb"
OCR = ROOT / "tests" / "data" / "ocr"
CHARTS = ["heat-map", "distribution", "group-figure", "paired-figure"]
KERNEL = {"display_name": "Python 3 (ipykernel)", "language": "python", "name": "python3"}


@pytest.fixture(scope="module", params=[pytest.param("run", marks=pytest.mark.slow)])
def cells(tmp_path_factory):
    """Outputs of each cell by its id, from a run in a copy of what it needs of the checkout."""
    root = tmp_path_factory.mktemp("checkout")
    folder, data, scratch = (root / name for name in ("deploy/jupyter", "tests/data", "scratch"))
    for one in (folder, data, scratch):
        one.mkdir(parents=True)
    (data / "ocr").symlink_to(OCR)
    kernel = root / "share" / "kernels" / "python3" / "kernel.json"
    kernel.parent.mkdir(parents=True)
    command = [sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}"]
    kernel.write_text(json.dumps({"argv": command, **KERNEL}))
    before = stored_files()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("JUPYTER_PATH", str(kernel.parents[2]))  # searched for kernels first
        patch.setenv("JUPYTER_PLATFORM_DIRS", "1")  # or jupyter_core warns that it will be so
        for name in ("CONFIG", "DATA", "RUNTIME"):
            patch.setenv(f"JUPYTER_{name}_DIR", str(root / name))
        patch.setenv("IPYTHONDIR", str(root / "ipython"))
        patch.setenv("TMPDIR", str(scratch))
        patch.setenv("DASK_ARRAY__QUERY_PLANNING", "False")  # with it, xarray can't do an argmax
        patch.delenv("MPLBACKEND", raising=False)
        notebook = nbformat.read(NOTEBOOK, as_version=4)
        NotebookClient(
            notebook, timeout=60, startup_timeout=60, resources={"metadata": {"path": str(folder)}}
        ).execute()
    assert list(folder.iterdir()) == []
    assert {path.name for path in scratch.iterdir()} <= {"dask-scratch-space"}
    assert stored_files() == before
    return {cell.id: cell.outputs for cell in notebook.cells if cell.cell_type == "code"}


def stored_files():
    return {file: file.stat().st_mtime_ns for file in (OCR / "logits.zarr").rglob("*")}


def text(outputs):
    shown = (one.get("text") or one.get("data", {}).get("text/plain", "") for one in outputs)
    return "\n".join(shown)


def numbers(line):
    return [float(number) for number in re.findall(r"-?\d+(?:\.\d+)?(?:e-?\d+)?", line)]


# Run


def test_nothing_is_written_to_stderr(cells):
    # Where warnings go, and the log of Dask.
    streams = [one for outputs in cells.values() for one in outputs if one.output_type == "stream"]
    assert streams
    assert [one.text for one in streams if one.name != "stdout"] == []


def test_what_is_said_of_the_whole(cells):
    expected = json.loads((OCR / "expected.json").read_text())["whole_logits"]
    mean, agreement = text(cells["show-mean"]).splitlines()
    assert numbers(mean) == [float(f"{expected['mean']:.8f}"), 640]
    assert numbers(agreement) == [float(f"{expected['top1_agreement']:.1%}"[:-1])]
    worst = text(cells["worst-position"])
    assert numbers(re.search(r"array\((.*?),", worst)[1]) == [pytest.approx(expected["worst"])]
    place = [re.search(rf"{dim} .* (\d+)$", worst, re.M)[1] for dim in ("sequence", "position")]
    assert [int(one) for one in place] == expected["worst_position"]
    mean, median = expected["mean"], expected["quantiles"]["0.5"]
    assert f"The mean is {mean / median:.0f} times the median" in source("about-tail")


def test_what_is_said_of_parts(cells):
    assert text(cells["check-data"]).count(" 0    []") == 8
    assert numbers(text(cells["tail"])) == [1, 37, 10, 69]
    assert numbers(text(cells["masked"])) == [53, 39]
    table = cells["group-table"][0].data["text/html"]
    rows = re.findall(r"<th [^>]*row_heading[^>]*>(.*?)</th>\s*<td [^>]*>(\d+)</td>", table)
    assert rows == [
        ("after the text", "161"),
        ("blank in the text", "139"),
        ("character", "340"),
    ]
    assert "40 % of the divergence" in source("about-report")
    assert re.search(r">39\.8%<", table)


def test_the_students_differ(cells):
    difference, _, low, high, p, clusters = numbers(text(cells["compare-students"]))
    assert 0 < low < difference < high
    assert (p < 0.01, clusters) == (True, 16)


def test_the_bits_are_the_same(cells):
    shown = text(cells["other-chunks"])
    assert re.findall(r"the same .*: (\w+)", shown) == ["True", "True"]


def test_files_are_written(cells):
    assert numbers(text(cells["save-page"]))[0] > 20
    shown = text(cells["other-chunks"])
    assert numbers(re.search(r"^performance.html: (.*) [kM]iB", shown, re.M)[1])


@pytest.mark.parametrize("chart", CHARTS)
def test_figures_are_pictures(cells, chart):
    (output,) = cells[chart]
    assert len(output.data["image/png"]) > 10_000


def test_no_other_cell_draws(cells):
    drawing = [
        name
        for name, outputs in cells.items()
        if any("image/png" in one.get("data", {}) for one in outputs)
    ]
    assert drawing == CHARTS


def test_links_and_reports_are_shown(cells):
    assert re.search(
        r'href="http://127\.0\.0\.1:\d+/status"', cells["start-cluster"][0].data["text/html"]
    )
    assert "application/vnd.jupyter.widget-view+json" in cells["divergence-per-position"][0].data
    assert "<strong>mean KL 0.02682" in cells["report"][0].data["text/html"]


# As it is kept


STORED = json.loads(NOTEBOOK.read_text())


def source(name):
    (found,) = [cell["source"] for cell in STORED["cells"] if cell["id"] == name]
    return " ".join("".join(found).split())


def test_nothing_of_a_run_is_kept():
    assert set(STORED) == {"cells", "metadata", "nbformat", "nbformat_minor"}
    assert STORED["metadata"] == {"kernelspec": KERNEL}
    for cell in STORED["cells"]:
        assert cell["metadata"] == {}
        if cell["cell_type"] == "code":
            assert (cell["outputs"], cell["execution_count"]) == ([], None)
    nbformat.validate(STORED)


def test_ids_are_words_and_stay():
    names = [cell["id"] for cell in STORED["cells"]]
    assert len(set(names)) == len(names)
    assert [name for name in names if not re.fullmatch("[a-z]+(-[a-z]+)*", name)] == []
    # A notebook that is read and written again is the same file: its ids are not made up anew.
    again = nbformat.writes(nbformat.read(NOTEBOOK, as_version=4))
    assert json.loads(again) == STORED


def test_cells_are_short_and_told_of():
    kinds = [cell["cell_type"] for cell in STORED["cells"]]
    assert kinds[0] == "markdown"
    runs = [len(list(run)) for kind, run in itertools.groupby(kinds) if kind == "code"]
    assert max(runs) <= 3
    assert max(len(cell["source"]) for cell in STORED["cells"]) <= 20


def test_no_path_of_a_machine():
    paths = re.findall(r"(?<![\w.:/<])/[a-z]+/\S*", NOTEBOOK.read_text())
    assert paths == []
    assert os.path.expanduser("~") not in NOTEBOOK.read_text()
