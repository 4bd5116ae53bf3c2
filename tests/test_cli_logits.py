"""The command with logits, and with a mask."""

import json
from pathlib import Path

import numpy as np
import pytest

from kldiv_dask import kl_div_summary, kl_div_with_logits_summary
from tests.helpers.commands import call, run

OCR = Path(__file__).parent / "data" / "ocr"
EXPECTED = json.loads((OCR / "expected.json").read_text())
LOGITS = [str(OCR / f"{model}_logits.npy") for model in ("student", "teacher")]


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_logits_give_the_mean_over_positions():
    code, out, err = run("kldiv-dask", "compute", *LOGITS, "--kind", "logits", "--dtype", "float64")
    assert (code, err) == (0, [])
    expected = np.mean(EXPECTED["logits"]["per_position"])
    assert float(out) == pytest.approx(expected, rel=1e-12)


def test_axis_temperature_and_mask(client, folder, capsys):
    x, t = (np.moveaxis(np.load(path), -1, 0) for path in LOGITS)
    x[:, 0, 3] = np.nan
    mask = np.arange(32) % 3 == 1
    for name, array in (("x", x), ("t", t), ("mask", mask)):
        np.save(f"{name}.npy", array)
    options = [
        "--kind",
        "logits",
        "--axis",
        "0",
        "--temperature",
        "2",
        "--where",
        "mask.npy",
        "--json",
    ]
    options += ["--scheduler", client.scheduler.address]
    code, out, err = call(capsys, "x.npy", "t.npy", *options)
    assert (code, err) == (0, [])
    report = json.loads(out)
    wanted = kl_div_with_logits_summary(x, t, axis=0, temperature=2, where=mask).compute()
    assert {name: np.float32(report[name]) for name in ("sum", "mean", "batchmean")} == {
        "sum": wanted.sum,
        "mean": wanted.mean,
        "batchmean": wanted.batchmean,
    }
    assert (report["numel"], report["nan_count"]) == (11, 0)
    given = {"kind": "logits", "axis": 0, "temperature": 2.0, "where": "mask.npy"}
    assert {name: report[name] for name in given} == given


def test_a_mask_of_elements(client, folder, capsys):
    rng = np.random.default_rng(0)
    x, t = np.log(rng.random((9, 5))), rng.random((9, 5))
    mask = rng.random((9, 1)) < 0.5
    x[~mask[:, 0]] = np.nan
    for name, array in (("x", x), ("t", t), ("mask", mask)):
        np.save(f"{name}.npy", array)
    arguments = ["x.npy", "t.npy", "--where", "mask.npy", "--reduction", "batchmean"]
    code, out, err = call(capsys, *arguments, "--scheduler", client.scheduler.address)
    assert (code, err) == (0, [])
    wanted = kl_div_summary(x, t, where=mask).compute()
    assert np.isfinite(wanted.batchmean)
    assert out == f"{wanted.batchmean}\n"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--axis", "0"], "--axis and --temperature are for --kind logits"),
        (["--temperature", "1"], "--axis and --temperature are for --kind logits"),
        (["--kind", "logits", "--zero-safe"], "--zero-safe is not for --kind logits"),
        (
            ["--kind", "logits", "--temperature", "0"],
            "temperature must be a positive finite number, got 0.0",
        ),
        (["--kind", "logits", "--axis", "3"], "axis 3 is out of bounds for array of dimension 3"),
        (
            ["--kind", "logits", "--where", LOGITS[0]],
            "where must be booleans, or integers of 0 and 1, got dtype float16",
        ),
        (["--kind", "logits", "--where", "none.npy"], "none.npy"),
    ],
)
def test_bad_options(options, message, capsys):
    code, out, err = call(capsys, *LOGITS, *options)
    assert (code, out) == (2, "")
    assert err[-1].startswith("Error: ")
    assert message in err[-1]
