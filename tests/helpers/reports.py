"""Results as reports take them, usual and hostile, and a parser of pages."""

import math
import unicodedata
from html.parser import HTMLParser
from typing import Any

import numpy as np

NAN = math.nan
PROBABILITIES = (0.001, 0.01, 0.25, 0.5, 0.75, 0.99, 0.999)
HOSTILE: list[Any] = [
    "<script>alert(1)</script>",
    '" onload="alert(1)',
    "$\\frac{$ and ${headline} $headline",
    "汉字文本识别" * 20,
    "\x1b[31mred\x07\ntwo lines\u202e",
    "a" * 5000,
    '#010203 id="chart',
    7,
    "",
]


def statistics(scale: float = 1.0, **changes: Any) -> dict[str, Any]:
    values = scale * np.geomspace(1e-4, 2.0, 640)
    mean, edges = float(values.mean()), scale * np.geomspace(0.9e-4, 2.1, 21)
    return {
        "count": 640,
        "sum": float(values.sum()),
        "mean": mean,
        "mean_of_finite": mean,
        "standard_error": mean / 20,
        "confidence_interval": [mean * 0.9, mean * 1.1],
        "standard_error_clustered": mean / 10,
        "confidence_interval_clustered": [mean * 0.8, mean * 1.2],
        "clusters": 16,
        "min": float(values[0]),
        "max": float(values[-1]),
        "quantiles": [[p, float(np.quantile(values, p))] for p in PROBABILITIES],
        "histogram": {
            "edges": edges.tolist(),
            "counts": np.histogram(values, edges)[0].tolist(),
        },
        "worst": [{"index": [i, 24], "kl": float(values[-1 - i])} for i in range(20)],
        "top1_agreement": 0.9578,
        "top1_agreement_standard_error": 0.0079,
        "reverse_kl": 0.03125,
        "jensen_shannon": 0.0078125,
        "by_position": [
            {"start": i, "stop": i + 1, "count": 16, "mean": 1 / (i + 3)} for i in range(40)
        ],
        "labels": None,
        **changes,
    }


def evaluation(names: Any = ("news", "code", "prose"), **changes: Any) -> dict[str, Any]:
    checks = ("nan", "infinite", "input_excludes_classes", "target_excludes_classes")
    return {
        "schema": 1,
        "kind": "logits",
        "unit": "nats",
        "shape": [16, 40],
        "overall": statistics(),
        "groups": [{"group": name, **statistics(1 + i)} for i, name in enumerate(names)],
        "checks": {name: {"count": 0, "first": []} for name in checks},
        "skipped": [],
        "provenance": {"input": "model.zarr", "classes": 6625, "seconds": 12.3456},
        **changes,
    }


def labels() -> dict[str, Any]:
    return {
        "count": 600,
        "nll_input": 1.25,
        "nll_target": 1.2,
        "perplexity_input": math.exp(1.25),
        "perplexity_target": math.exp(1.2),
        "perplexity_ratio": math.exp(0.05),
        "log_perplexity_ratio_standard_error": 0.004,
        "p_change_mean": -0.00234,
        "p_change_rms": 0.0345,
        "p_change_quantiles": [[0.01, -0.125], [0.5, -1e-5], [0.99, 0.0625]],
    }


def all_nan() -> dict[str, Any]:
    whole = evaluation()
    for one in (whole["overall"], *whole["groups"]):
        for name, value in one.items():
            if isinstance(value, float):
                one[name] = NAN
        one["confidence_interval"] = one["confidence_interval_clustered"] = [NAN, NAN]
        one["quantiles"] = [[p, NAN] for p in PROBABILITIES]
        one |= {"histogram": {"edges": [], "counts": []}, "worst": []}
        for run in one["by_position"]:
            run["mean"] = NAN
    whole["checks"]["nan"] = {"count": 640, "first": [[0, 0], [0, 1]]}
    return whole


SKIPPED = [
    {"region": [[0, 8], [i, 40]], "positions": 320, "error": "<b>gone</b>\n" + "x" * 400}
    for i in range(13)
]

REPORTS = {
    "usual": evaluation(),
    "labels": evaluation(overall=statistics(labels=labels())),
    "no groups": evaluation(names=()),
    "many groups": evaluation(names=range(200)),
    "no positions": evaluation(overall=statistics(by_position=[])),
    "all NaN": all_nan(),
    "hostile": evaluation(names=HOSTILE, skipped=SKIPPED, provenance={"input": HOSTILE[0] * 50}),
    "tiny": evaluation(overall=statistics(1e-9), shape=[640]),
    "huge": evaluation(overall=statistics(1e12), names=[]),
}


class Tags(HTMLParser):
    """Tags that are closed as they were opened, and their attributes."""

    VOID = ("meta",)

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.seen: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(text)
        self.close()
        assert not self.open

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        self.seen.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: Any) -> None:
        self.seen.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


def columns(line: str) -> int:
    return sum(1 + (unicodedata.east_asian_width(c) in "WF") for c in line)
