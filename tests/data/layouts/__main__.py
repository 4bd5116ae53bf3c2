"""Write the files of this layout, and the digest of this revision."""

import json

from kldiv_dask.versions import LAYOUT, REVISION


def main() -> None:
    from tests import test_versions as versions

    path = versions.FOLDER / f"checkpoint-{LAYOUT}.ckpt"
    result = versions.example(checkpoint=path, resume=False)
    result.save(versions.FOLDER / f"result-{LAYOUT}.kldiv")
    numbers = {
        "layout": {"number": LAYOUT, "fields": versions.layout_of(result)},
        "bits": {"revision": REVISION, "digest": versions.digest()},
    }
    (versions.FOLDER / "numbers.json").write_text(json.dumps(numbers, indent=1) + "\n")


if __name__ == "__main__":
    main()
