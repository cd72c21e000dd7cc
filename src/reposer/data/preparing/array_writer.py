"""Streams people into the arrays of a packed folder; their number need not be known before."""

from __future__ import annotations

from pathlib import Path
from typing import Self

import numpy as np
from numpy.typing import NDArray

from reposer.data.packed import ARRAYS


class ArrayWriter:
    """Appends people to images.npy, parsing.npy and mask.npy, whose headers get the count at the end."""

    def __init__(self, folder: Path, size: tuple[int, int]) -> None:
        self.shapes = {"images": (*size, 3), "parsing": size, "mask": size}
        self.dtypes = {"images": np.uint8, "parsing": np.uint8, "mask": np.bool_}
        self.count = 0
        self.files = {name: (folder / f"{name}.npy").open("xb") for name in ARRAYS}

    def __enter__(self) -> Self:
        self._write_headers()
        return self

    def __exit__(self, *exception: object) -> None:
        for file in self.files.values():
            file.seek(0)
        try:
            self._write_headers()
        finally:
            for file in self.files.values():
                file.close()

    def append(self, image: NDArray[np.uint8], parsing: NDArray[np.uint8], mask: NDArray[np.bool_]) -> None:
        """Write one person at the end of each file."""
        for name, array in zip(ARRAYS, (image, parsing, mask), strict=True):
            if array.shape != self.shapes[name] or array.dtype != self.dtypes[name]:
                raise TypeError(f"{name} is {array.dtype} {array.shape}")
            self.files[name].write(array.tobytes())
        self.count += 1

    def _write_headers(self) -> None:
        """NumPy pads the first axis ("growth axis") to a fixed width: a header can be rewritten in place."""
        for name, file in self.files.items():
            header = {
                "descr": np.lib.format.dtype_to_descr(np.dtype(self.dtypes[name])),
                "fortran_order": False,
                "shape": (self.count, *self.shapes[name]),
            }
            np.lib.format.write_array_header_1_0(file, header)
