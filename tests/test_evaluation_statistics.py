"""From states to numbers: quantiles, Student's t, clustered errors, comparisons and merges."""

import itertools
import json
import math

import dask.array as da
import numpy as np
import pytest
from scipy import special, stats

from kldiv_dask import Evaluation, compare, evaluate
from kldiv_dask.statistics import sketch, state
from kldiv_dask.statistics.distribution import PROBABILITIES
from kldiv_dask.statistics.intervals import clustered, interval, p_value
from tests import reference_evaluation as reference
from tests.helpers.cases import slow_unless
from tests.helpers.evaluations import check_by_position, same_bits


def rng(*seed):
    return np.random.default_rng(seed)


def run(*args, **options):
    return evaluate(*args, progress=False, **{"scheduler": "sync"} | options)


def logits(shape, seed=0, classes=6):
    """Draw a student and its teacher; sequences differ in how hard they are."""
    r = rng(seed, *shape)
    teacher = r.normal(size=(*shape, classes))
    hard = r.exponential(size=(shape[0], *(1,) * len(shape)))
    return teacher + 0.3 * hard * r.normal(size=teacher.shape), teacher


def near(found, expected, relative=1e-12):
    assert found == pytest.approx(expected, rel=relative, abs=0)


# Sketch


def magnitudes():
    """100,000 numbers of all normal magnitudes: any exponent and significand alike."""
    patterns = rng(0).integers(1 << 52, 0x7FF << 52, 100_000)
    return patterns.view(np.float64)


@pytest.mark.parametrize("sign", [1, -1])
def test_middles(sign):
    values = sign * magnitudes()
    bins = sketch.bins_of(values)
    assert (np.abs(sketch.middles(bins) / values - 1) <= sketch.RELATIVE_ERROR).all()
    order = np.argsort(values)
    assert (np.diff(bins[order]) >= 0).all()


def test_middles_of_subnormals():
    values = rng(1).integers(0, 1 << 52, 10_000).view(np.float64)
    middles = sketch.middles(sketch.bins_of(values))
    assert (np.abs(middles - values) <= 2.0**-1029).all()


def test_middles_of_special_numbers():
    values = np.array([-np.inf, -0.0, 0.0, 5e-324, np.inf])
    assert sketch.middles(sketch.bins_of(values)).tolist() == [-np.inf, 0, 0, 0, np.inf]
    most = np.array([np.finfo(float).max])
    assert 1 - sketch.RELATIVE_ERROR <= (sketch.middles(sketch.bins_of(most)) / most)[0] <= 1


SAMPLES = {
    "lognormal": lambda r, n: np.exp(3 * r.normal(size=n)),
    "ties": lambda r, n: r.choice([0.0, 1e-3, 2.0, 2.0, 1e5], n),
    "one": lambda r, n: np.full(n, 0.7),
    "negative": lambda r, n: -r.exponential(size=n),
    "infinite": lambda r, n: np.where(r.random(n) < 0.5, np.inf, r.exponential(size=n)),
}


@pytest.mark.parametrize("count", [1, 2, 3, 10, 1000, 100_000])
@pytest.mark.parametrize("name", SAMPLES)
def test_quantiles(name, count):
    values = SAMPLES[name](rng(count), count)
    bins, counts = np.unique(sketch.bins_of(values), return_counts=True)
    probabilities = np.array([0.0, *PROBABILITIES, 1.0])
    found = sketch.quantiles(bins, counts, probabilities)
    ranks = probabilities * (count - 1)
    exact = np.sort(values)[np.floor(ranks).astype(int)]
    with np.errstate(invalid="ignore"):
        between = np.quantile(values, probabilities)
    # Where there is an infinity, NumPy has NaN for what is beside it.
    between = np.where(np.isnan(between), np.inf, between)
    expected = np.where(ranks == np.floor(ranks), exact, between)
    np.testing.assert_allclose(found, expected, rtol=sketch.RELATIVE_ERROR, atol=0)


# Student's t distribution


@pytest.mark.parametrize("dof", [1, 2, 9, 1023, 10**6])
def test_intervals(dof):
    near(interval(3.0, 0.5, dof), reference.interval(3.0, 0.5, dof))


def test_intervals_of_too_little():
    for error, dof in (0.5, 0), (math.nan, 9), (math.inf, 9):
        assert all(map(math.isnan, interval(3.0, error, dof)))


def test_p_values_have_no_floor():
    near(p_value(1.0, 0.5, 1), 1 - 2 * math.atan(2) / math.pi)
    near(p_value(-40.0, 1.0, 100), 2 * stats.t.sf(40, 100))
    assert 0 < p_value(40.0, 1.0, 100) < 1e-60
    assert [p_value(x, 0.0, 9) for x in (0.0, 0.1)] == [1.0, 0.0]
    assert math.isnan(p_value(0.1, math.nan, 0))


# Clustered errors


def test_clustered_against_twin():
    r = rng(3)
    sequences = r.integers(0, 50, 700)
    values = r.exponential(size=700) + 0.1 * sequences
    counts = np.bincount(sequences)
    sums = np.bincount(sequences, values)
    mean, error = clustered(counts.tolist(), sums.tolist())
    expected, clusters = reference.clustered(values, sequences)
    assert clusters == 50
    near(mean, values.mean())
    near(error, expected)
    near(interval(mean, error, 49), reference.interval(mean, error, 49))


@pytest.mark.parametrize("sequences", [40, 200])
def test_coverage(sequences):
    """Of 95 % intervals, where positions of a sequence go together."""
    r = rng(sequences)
    replications, positions = 1500, 20
    hits = {"clustered": 0, "independent": 0}
    for _ in range(replications):
        effects = r.exponential(size=(sequences, 1)) * 0.7
        values = effects + r.exponential(size=(sequences, positions)) * 0.3
        mean, error = clustered([positions] * sequences, values.sum(axis=1).tolist())
        alone = values.std(ddof=1) / math.sqrt(values.size)
        for name, one, dof in (
            ("clustered", error, sequences - 1),
            ("independent", alone, values.size - 1),
        ):
            low, high = interval(mean, one, dof)
            hits[name] += low <= 1.0 <= high
    assert 0.92 <= hits["clustered"] / replications <= 0.97
    assert hits["independent"] / replications < 0.7


@pytest.mark.parametrize("sequences", [1024, 1025, 2500])
def test_many_sequences(sequences):
    """Runs of neighbors, all of one length but the last."""
    student, teacher = logits((sequences, 3))
    found = run(student, teacher).overall
    step = -(-sequences // 1024)
    kl = reference.measure(student, teacher).kl
    runs = np.broadcast_to(np.arange(sequences)[:, None] // step, kl.shape)
    error, clusters = reference.clustered(kl, runs)
    assert found.clusters == clusters <= 1024
    near(found.standard_error_clustered, error, 1e-10)


# Comparisons


@pytest.mark.parametrize("noise", [0.3, 0.305, 0.6])
def test_compare(noise):
    _, teacher = logits((60, 8))
    students = [
        teacher + size * rng(1, i).normal(size=teacher.shape) for i, size in enumerate((0.3, noise))
    ]
    found = compare(*(run(student, teacher) for student in students))
    means = [reference.measure(s, teacher).kl.mean(axis=1).astype(float) for s in students]
    expected = stats.ttest_rel(*means)
    near(found.difference, means[0].mean() - means[1].mean(), 1e-9)
    near(found.p_value, expected.pvalue, 1e-6)
    near(found.confidence_interval, tuple(expected.confidence_interval()), 1e-8)
    assert (found.clusters, found.left_out) == (60, 0)
    assert f"p = {found.p_value:.2g}, 60 clusters)" in str(found)


def test_compare_leaves_out_what_is_not_finite():
    """As if the sequences with NaN or infinity in either were not there, and says how many."""
    _, teacher = logits((60, 8))
    students = [teacher + 0.3 * rng(1, i).normal(size=teacher.shape) for i in range(2)]
    students[0][7, 3, 2], students[1][7, 4, 0], students[1][31, 0, 1] = np.nan, -np.inf, -np.inf
    found = compare(*(run(student, teacher) for student in students))
    rest = np.delete(np.arange(60), [7, 31])
    expected = compare(*(run(student[rest], teacher[rest]) for student in students))
    assert found == expected._replace(left_out=2)
    assert "58 clusters; 2 with NaN or infinity left out)" in str(found)
    none = compare(*(run(student[[7, 31]], teacher[[7, 31]]) for student in students))
    assert (none.clusters, none.left_out) == (0, 2)
    assert math.isnan(none.difference)
    assert math.isnan(none.p_value)
    assert "nan nats (of no sequence; 2 with NaN or infinity left out)" in str(none)


def test_compare_with_itself():
    found = run(*logits((20, 4)))
    same = compare(found, found)
    assert (same.difference, same.standard_error, same.p_value) == (0.0, 0.0, 1.0)


@pytest.mark.parametrize("name", ["cluster_axis", "temperature", "kind", "shape"])
def test_compare_refuses(name):
    student, teacher = logits((20, 4))
    student, teacher = (special.log_softmax(a, axis=-1) for a in (student, teacher))
    options = {"cluster_axis": 1, "temperature": 2.0, "kind": "log_probs"}
    other = {name: options[name]} if name in options else {}
    rows = 20 if other else 19
    first, second = run(student, teacher), run(student[:rows], teacher[:rows], **other)
    with pytest.raises(ValueError, match=f"a and b differ in {name}, which is"):
        compare(first, second)


def test_compare_knows_targets_by_what_is_in_them(tmp_path):
    """A copy is the same target, in whatever chunks; other numbers, or another order, are not."""
    student, teacher = logits((20, 4))
    paths = [tmp_path / f"{name}.npy" for name in ("one", "copy", "other", "order")]
    for path, values in zip(paths, (teacher, teacher, teacher + 1, teacher[::-1]), strict=True):
        np.save(path, values)
    first, *others = (run(student, path) for path in paths)
    for same in others[0], run(student, da.from_array(teacher, chunks=(3, 2, 6))):
        assert compare(first, same).p_value == 1.0
    for other in others[1:]:
        with pytest.raises(ValueError, match="must be of the same target, got contents with the"):
            compare(first, other)


def test_compare_after_merging_other_pieces():
    _, teacher = logits((60, 8))
    students = [teacher + 0.3 * rng(1, i).normal(size=teacher.shape) for i in range(2)]
    wholes = [run(student, teacher) for student in students]
    cuts = [(10, 40), (33,)]
    merged = []
    for student, cut in zip(students, cuts, strict=True):
        rows = [slice(a, b) for a, b in zip((0, *cut), (*cut, 60), strict=True)]
        parts = [run(student[part], teacher[part]) for part in rows]
        merged.append(parts[0].merge(*parts[1:]))
    expected = compare(*wholes)
    assert compare(*merged) == compare(merged[0], wholes[1]) == expected
    assert merged[0].fingerprints == wholes[0].fingerprints


def test_compare_after_merging_many_sequences():
    """Beyond 1024 sequences, their runs may be of other lengths than those of the whole."""
    student, teacher = logits((1500, 1), classes=3)
    whole = run(student, teacher)
    halves = [run(student[rows], teacher[rows]) for rows in (slice(900), slice(900, None))]
    merged = halves[0].merge(halves[1])
    assert (whole.clustering["each"], merged.clustering["each"]) == (2, 1)
    near(compare(merged, whole).difference, 0.0)
    assert compare(merged, whole).clusters == 750
    odd = [run(student[rows], teacher[rows]) for rows in (slice(1301), slice(1301, None))]
    odd = odd[0].merge(odd[1])
    assert odd.clustering["each"] is None
    assert "runs of neighboring sequences" in str(odd)
    with pytest.raises(ValueError, match="must have their sequences in the same clusters"):
        compare(odd, whole)


# The last masks have as many positions in each sequence.
@pytest.mark.parametrize("excluded", [([3], []), ([3], [5]), (np.s_[:, 1], np.s_[:, 2])])
def test_compare_refuses_other_positions(excluded):
    student, teacher = logits((20, 4))
    runs = []
    for rows in excluded:
        where = np.ones((20, 4), bool)
        where[rows] = False
        runs.append(run(student, teacher, where=where))
    with pytest.raises(ValueError, match="must be of the same positions, got others: their masks"):
        compare(*runs)


# Evaluations of parts, and files


def labeled(shape):
    r = rng(5, *shape)
    return {
        "labels": r.integers(0, 6, shape),
        "where": r.random(shape) < 0.9,
        "groups": np.array(["a", "b", "c"])[r.integers(0, 3, shape)],
    }


def parts_of(student, teacher, options, cut, **more):
    """Evaluate the rows before a cut and those after it."""
    return [
        run(student[rows], teacher[rows], **{k: v[rows] for k, v in options.items()}, **more)
        for rows in (slice(cut), slice(cut, None))
    ]


@pytest.mark.parametrize("cluster_axis", [0, 1])
@pytest.mark.parametrize("cut", [1, 17, 39])
def test_merge(cut, cluster_axis):
    shape = (40, 9)
    student, teacher = logits(shape)
    student[22, 3] = np.nan
    options = labeled(shape)
    whole = run(student, teacher, **options, cluster_axis=cluster_axis)
    first, second = parts_of(student, teacher, options, cut, cluster_axis=cluster_axis)
    merged = first.merge(second)
    assert merged.shape == shape
    left, right = (e.to_dict() for e in (merged, whole))
    for numbers in (left, right):
        del numbers["provenance"]
    assert json.dumps(left) == json.dumps(right)


def test_merge_in_three():
    student, teacher = logits((30, 4))
    parts = [run(student[i : i + 10], teacher[i : i + 10]) for i in (0, 10, 20)]
    whole = run(student, teacher).overall
    for merged in parts[0].merge(*parts[1:]), parts[0].merge(parts[1].merge(parts[2])):
        assert merged.overall == whole


def test_merge_refuses():
    student, teacher = logits((20, 4))
    one = run(student, teacher)
    with pytest.raises(ValueError, match=r"\(20, 4\) and \(20, 3\) do not follow each other"):
        one.merge(run(student[:, 1:], teacher[:, 1:]))
    with pytest.raises(ValueError, match=r"differ in temperature: 1\.0 and 2\.0"):
        one.merge(run(student, teacher, temperature=2.0))
    with pytest.raises(ValueError, match="one of the evaluations has labels and the other"):
        one.merge(run(student, teacher, labels=0))


def test_save_and_load(tmp_path):
    student, teacher = logits((12, 5))
    found = run(student, teacher, **labeled((12, 5)))
    found.save(tmp_path / "result")
    again = Evaluation.load(tmp_path / "result")
    assert [path.name for path in tmp_path.iterdir()] == ["result"]
    assert again.to_json() == found.to_json()
    same_bits(again.state, found.state)
    (tmp_path / "result").write_bytes((tmp_path / "result").read_bytes()[:-1])
    with pytest.raises(ValueError, match=r"result is damaged"):
        Evaluation.load(tmp_path / "result")


def test_load_refuses_checkpoints(tmp_path):
    run(*logits((4, 2)), checkpoint=tmp_path / "run")
    with pytest.raises(
        ValueError, match="run must be a file that `save` wrote, got the checkpoint of a run"
    ):
        Evaluation.load(tmp_path / "run")


def test_json(tmp_path):
    student, teacher = logits((12, 5))
    student[3, 2, 1] = -np.inf
    student[5, 1] = np.nan
    found = run(student, teacher, **labeled((12, 5)) | {"where": True})
    text = found.to_json(tmp_path / "result.json")
    assert (tmp_path / "result.json").read_text() == f"{text}\n"

    def refuse(constant):
        raise AssertionError(constant)

    parsed = json.loads(text, parse_constant=refuse)
    assert parsed["overall"]["mean"] == "nan"
    assert parsed["overall"]["max"] == "inf"
    assert parsed["overall"]["count"] == 60
    assert {one["group"] for one in parsed["groups"]} == {"a", "b", "c"}
    assert parsed["checks"]["nan"] == {"count": 1, "first": [[5, 1]]}


# Too many cells


@pytest.mark.parametrize(
    ("limit", "groups"),
    slow_unless([(4, 3), (16, 20)], itertools.product([4, 16], [1, 3, 20])),
)
def test_halvings(monkeypatch, limit, groups):
    """Cells are joined as often for any order of the data."""
    monkeypatch.setattr(state, "MAX_RUNS", limit)
    shape = (64, 3)
    student, teacher = logits(shape)
    names = np.arange(64)[:, None] * groups // 64
    # A group that no position is in takes no cell.
    where = np.broadcast_to(names != 7, shape)
    found = []
    for chunks in (64, 1, 5, (1, 33, 30)):
        pair = [da.from_array(a, chunks=(chunks, 3, 6)) for a in (student, teacher)]
        found.append(run(*pair, groups=names, where=where))
    # Halved `h` times, a cell is 2**h sequences.
    halvings = found[0].state.cells.halvings
    assert halvings > 0
    kl = reference.measure(student, teacher).kl
    cells = np.broadcast_to(np.arange(64)[:, None] >> halvings, shape)
    error, clusters = reference.clustered(kl[where], cells[where])
    assert found[0].overall.clusters == clusters
    near(found[0].overall.standard_error_clustered, error, 1e-10)
    step = 2 ** found[0].state.group_columns.halvings
    assert step > 1 or 3 * groups <= max(limit, groups)
    for name, one in found[0].groups.items():
        check_by_position(one, kl, where & (names == name), 1e-10, step)
    check_by_position(found[0].overall, kl, where, 1e-10)
    for other in found[1:]:
        same_bits(other.state, found[0].state)
