"""Take the README's few rows from the full tables in this folder's README.

Run as ``python -m tests.benchmarks.summary`` after the tables were made anew. A test holds the rows
to the tables.
"""

from pathlib import Path

from tests.benchmarks.comparison import around, figure

TABLES = Path(__file__).with_name("README.md")
README = TABLES.parents[2] / "README.md"

HEAD = """\
| one core | ns an element | reading both | torch | torch compiled | SciPy |
| --- | --: | --: | --: | --: | --: |
"""
# A row of the README: what it says, and the row of the table of one thread that it is.
POINTWISE = {
    "`kl_div`, float32": "float32 sum",
    "`kl_div`, float16": "float16 sum",
    "`kl_div`, bfloat16": "bfloat16 sum",
}
COLUMNS = ("torch eager", "torch compiled", "SciPy")
LOGITS = {"logits, float32": "float32", "logits, float16": "float16"}


def tables(text: str) -> list[list[dict[str, str]]]:
    """Read the tables of a Markdown text: each row is a dictionary by the names of columns."""
    found = []
    for block in text.split("\n\n"):
        lines = block.strip().splitlines()
        if lines and lines[0].startswith("|"):
            head, _, *rows = ([cell.strip() for cell in line[1:-1].split("|")] for line in lines)
            found.append([dict(zip(head, row, strict=True)) for row in rows])
    return found


def rows(text: str) -> str:
    """Return the README's table from the text of the full ones."""
    read = tables(text)
    (one_thread,) = [table for table in read if "1 thread" in table[0]]
    (logits,) = [table for table in read if "logits" in table[0]]
    lines = []
    for label, name in POINTWISE.items():
        (row,) = [row for row in one_thread if row["1 thread"] == name]
        reading = figure(1 / float(row["/ reading"]))
        lines.append([label, row["ns"], reading, *map(row.__getitem__, COLUMNS)])
    for label, dtype in LOGITS.items():
        of = {row[""]: row for row in logits if row["logits"] == dtype}
        ratios = [of[name]["/ bare kernel"] for name in ("reading both arrays", *COLUMNS)]
        nanoseconds = of["bare kernel"]["ns an element"]
        lines.append([label, nanoseconds, *(figure(float(ratio)) for ratio in ratios)])
    return HEAD + "".join(f"| {' | '.join(line)} |\n" for line in lines)


def main() -> None:
    """Put the rows between the markers of the README."""
    before, after = around(README)
    README.write_text(f"{before}\n{rows(TABLES.read_text())}{after}")


if __name__ == "__main__":
    main()
