"""Write the example data as Zarr arrays: data/student.zarr and data/teacher.zarr in this folder."""

from pathlib import Path

import numpy as np
import zarr

HERE = Path(__file__).parent
OCR = HERE.parent / "tests" / "data" / "ocr"

for name in ("student", "teacher"):
    array = np.load(OCR / f"{name}_log_probs.npy")
    # Ten chunks of (1, 4, 6625), so that several workers have something to do. Real data wants
    # chunks of about 128 MiB.
    zarr.create_array(
        HERE / "data" / f"{name}.zarr", data=array, chunks=(1, 4, array.shape[2]), overwrite=True
    )
