"""What the reader must know of the data, and of what was left out, in sentences."""

from collections.abc import Iterator
from typing import NamedTuple

from kldiv_dask.report.numbers import number
from kldiv_dask.report.wording import Report, clean, dimension_names, index_text, region_text

_MAX_SKIPPED = 10


class Remark(NamedTuple):
    """A sentence below the headline; a warning casts doubt on the figures."""

    is_warning: bool
    sentence: str


class Check(NamedTuple):
    """What a check of the data counts, as it is written after "is" or "are"."""

    finding: str
    is_warning: bool
    is_in_doubts: bool = False
    """Whether the sentences of ``doubts`` say it already."""


CHECKS = {
    "nan": Check("NaN", True),
    "infinite": Check("infinite", True),
    "input_not_normalized": Check("not normalized in the input", True),
    "target_not_normalized": Check("not normalized in the target", True),
    "input_excludes_classes": Check("without some class in the input (probability 0)", False),
    "target_excludes_classes": Check("without some class in the target (probability 0)", False),
    "input_constant": Check("constant in the input", True, True),
    "target_constant": Check("constant in the target", True, True),
    "input_resembles_probs": Check("like probabilities in the input", True, True),
    "target_resembles_probs": Check("like probabilities in the target", True, True),
    "input_resembles_log_probs": Check("like log-probabilities in the input", True, True),
    "target_resembles_log_probs": Check("like log-probabilities in the target", True, True),
    "input_out_of_range": Check("out of range in the input", True, True),
    "target_out_of_range": Check("out of range in the target", True, True),
    "input_label_at_floor": Check(
        "with the label at the floor of the input, whose probability is not known", True
    ),
    "target_label_at_floor": Check(
        "with the label at the floor of the target, whose probability is not known", True
    ),
}


def missing_chunks(missing: Report) -> str:
    """Say how much of a stored array is not there."""
    count = missing["chunks"]
    chunks = f"{count:,} stored chunks are" if count != 1 else "1 stored chunk is"
    caveat = (
        ""
        if missing.get("whole", True)
        else "; it is not known how much of that counts in what is made of it"
    )
    return (
        f"{missing['operand']}: {chunks} not there: never written, or all equal to the fill value "
        f"{number(missing['fill'])}, first at {region_text(missing['first'])} of "
        f"{clean(missing['array'])}{caveat}"
    )


def remarks(report: Report) -> Iterator[Remark]:
    """Yield what the reader must know of the data and of what was skipped."""
    doubts = list(_doubts(report))
    for sentence in doubts:
        yield Remark(True, sentence)
    for missing in report.get("missing", ()):
        # Masks that are False in whole chunks are nothing unusual.
        if missing["operand"] == "where":
            yield Remark(False, missing_chunks(missing))
    yield from _of_checks(report)
    checks = report["checks"]
    is_any_found = any(check["count"] for check in checks.values())
    if checks and not (is_any_found or doubts or report["skipped"]):
        yield Remark(False, "data checks: nothing found")
    for key, label in (("repeated", "repeated"), ("taken_over", "from the checkpoint")):
        if key in report["provenance"]:
            yield Remark(False, f"{label}: {report['provenance'][key]}")
    clustering = report.get("clustering")
    if clustering and clustering["of"] == "positions" and (clustering["each"] or 2) > 1:
        yield Remark(
            False,
            "the positions have one axis, so the interval is too narrow if texts are longer than "
            "a run: give positions the axes (text, token)",
        )
    yield from _of_skipped(report)


def _doubts(report: Report) -> Iterator[str]:
    for missing in report.get("missing", ()):
        if missing["operand"] != "where":
            yield missing_chunks(missing)
    yield from report.get("doubts", ())


def _of_checks(report: Report) -> Iterator[Remark]:
    dimensions = dimension_names(report)
    for name, result in report["checks"].items():
        check, count = CHECKS[name], result["count"]
        if not count or check.is_in_doubts:
            continue
        line = f"{count:,} {'position is' if count == 1 else 'positions are'} {check.finding}"
        if result.get("largest_deviation") is not None:
            line += f" (by up to {number(result['largest_deviation'])})"
        if result["first"]:
            line += f", first at {index_text(result['first'][0], dimensions)}"
        yield Remark(check.is_warning, line)


def _of_skipped(report: Report) -> Iterator[Remark]:
    skipped, dimensions = report["skipped"], dimension_names(report)
    for part in skipped[:_MAX_SKIPPED]:
        region, count = region_text(part["region"], dimensions), part["positions"]
        yield Remark(True, f"skipped {region}, {count:,} positions: {clean(part['error'])}")
    more = skipped[_MAX_SKIPPED:]
    if more:
        count = sum(part["positions"] for part in more)
        yield Remark(True, f"skipped {len(more):,} more regions, {count:,} positions")
