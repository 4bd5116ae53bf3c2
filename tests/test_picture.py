"""The picture of a small graph in the deployment notes, held against the graph as it is.

``python -m tests.test_picture`` draws it anew; that needs Graphviz and its Python package.
"""

import html
import re
import shutil
from pathlib import Path

import dask
import dask.array as da
import numpy as np
import pytest
from dask.core import get_dependencies
from dask.dot import to_graphviz
from dask.utils import key_split

from kldiv_dask import kl_div
from tests.test_graph import EXPRESSIONS

PICTURE = Path(__file__).parent.parent / "deploy" / "jupyter" / "graph.svg"

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


if __name__ == "__main__":
    draw(PICTURE)
