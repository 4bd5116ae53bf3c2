"""The pictures of a small graph and of a report, held against what they are pictures of.

``python -m tests.test_picture`` makes both anew; that needs Graphviz with its Python package, and
Chromium.
"""

import html
import re
import shutil
import subprocess
import tempfile
from pathlib import Path

import dask
import dask.array as da
import numpy as np
import pytest
from dask.core import get_dependencies
from dask.dot import to_graphviz
from dask.utils import key_split
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from kldiv_dask import evaluate, kl_div
from tests.test_graph import EXPRESSIONS

ROOT = Path(__file__).parents[1]
PICTURE = ROOT / "deploy" / "jupyter" / "graph.svg"
REPORT = ROOT / ".github" / "report.png"
SIZE = (880, 848)  # of the window, up to the end of the first chart

OPERANDS = {"input": -1.0, "target": 0.5}


def drawn():
    """The divergence of 4 pairs of chunks, optimized, but with a name for each of its stages."""
    pair = [
        da.from_array(np.full((8, 3), value), chunks=(2, 3), name=name)
        for name, value in OPERANDS.items()
    ]
    with dask.config.set({"optimization.fuse.active": False}):
        (optimized,) = dask.optimize(kl_div(*pair, reduction="batchmean"))
    return dict(sorted(dict(optimized.__dask_graph__()).items()))


def draw(path):
    """Write an SVG, without the tooltips and remarks, which are hashes."""
    tasks = drawn()
    looks = {
        key: {
            "label": key_split(key),
            "shape": "box",
            "style": "filled" if key[0] in OPERANDS else "filled,rounded",
            "fillcolor": "#e8eef4" if key[0] in OPERANDS else "#fdebd8",
        }
        for key in tasks
    }
    picture = to_graphviz(
        tasks,
        data_attributes=looks,
        function_attributes=looks,
        collapse_outputs=True,
        rankdir="LR",
        bgcolor="white",
    )
    text = picture.pipe(format="svg", encoding="utf-8")
    path.write_text(re.sub(r"<title>.*?</title>\n|<!--.*?-->\n", "", text, flags=re.DOTALL))


def labels(path):
    texts = re.findall("<text.*?>(.*)</text>", path.read_text())
    return sorted(map(html.unescape, texts))


@pytest.mark.skipif(EXPRESSIONS, reason="it is of Dask's default arrays")
def test_the_picture_is_of_the_graph():
    tasks = drawn()
    assert labels(PICTURE) == sorted(map(key_split, tasks))
    edges = sum(len(get_dependencies(tasks, key)) for key in tasks)
    assert PICTURE.read_text().count('class="edge"') == edges
    assert set(labels(PICTURE)) > {"kl-div-block", "kl-div-merge-aggregate", "kl-div-finalized"}


def test_the_picture_is_small_and_white():
    assert PICTURE.stat().st_size < 30_000
    assert '<polygon fill="white"' in PICTURE.read_text()


@pytest.mark.skipif(EXPRESSIONS, reason="it is of Dask's default arrays")
@pytest.mark.skipif(not shutil.which("dot"), reason="needs Graphviz")
def test_it_can_be_drawn_anew(tmp_path):
    pytest.importorskip("graphviz")
    draw(tmp_path / "graph.svg")
    assert labels(tmp_path / "graph.svg") == labels(PICTURE)


# The report


def saved(path):
    """Save the report that the README's first command makes."""
    store = str(ROOT / "tests" / "data" / "ocr" / "logits.zarr")
    keys = {"input_key": "student", "target_key": "teacher"}
    evaluate(store, store, **keys, progress=False, scheduler="sync").to_html(path)


def words(path):
    """Give the words of a report: not those in charts, and not where and when it was made."""
    page = path.read_text().partition("<h2>Provenance</h2>")[0]
    page = re.sub(r"<(title|style|svg)\b.*?</\1>", " ", page, flags=re.DOTALL)
    return html.unescape(re.sub(r"<[^>]*>", " ", page)).split()


def photograph(picture):
    """Write what a browser shows of the report, and in the same file its words."""
    with tempfile.TemporaryDirectory() as name:
        page, shot = Path(name) / "report.html", Path(name) / "shot.png"
        saved(page)
        window = f"--window-size={SIZE[0]},{SIZE[1]}"
        options = "--headless", "--no-sandbox", "--hide-scrollbars", "--force-device-scale-factor=2"
        browser = shutil.which("chromium") or "chromium"
        subprocess.run(
            [browser, *options, window, f"--screenshot={shot}", page.as_uri()], check=True
        )
        remark = PngInfo()
        remark.add_itxt("words", " ".join(words(page)), zip=True)
        Image.open(shot).convert("RGB").quantize(32).save(picture, optimize=True, pnginfo=remark)


def test_the_picture_is_of_this_report(tmp_path):
    """If this fails, run ``python -m tests.test_picture``."""
    saved(tmp_path / "report.html")
    with Image.open(REPORT) as picture:
        assert picture.text["words"].split() == words(tmp_path / "report.html")


def test_the_picture_of_the_report_is_small():
    assert REPORT.stat().st_size < 150_000
    with Image.open(REPORT) as picture:
        assert picture.size == tuple(2 * length for length in SIZE)


if __name__ == "__main__":
    draw(PICTURE)
    photograph(REPORT)
