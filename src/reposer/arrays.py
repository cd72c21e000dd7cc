"""Arrays from anybody's tool as the numbers that they are: features, distances, labels of every dtype.

Arithmetic in the dtype that a file happens to have is wrong in silence: whole numbers truncate, 8 bits wrap
around, float16 overflows at 65,504. Everything that computes goes through here first. What float32 holds
exactly becomes float32, all else float64, in the machine's byte order.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray

from reposer.errors import UserError

_SINGLE = {"b", "i1", "i2", "u1", "u2", "f2", "f4"}  # dtypes (kind, bytes) whose values float32 holds exactly


def float_array(values: ArrayLike | torch.Tensor, what: str) -> NDArray[np.floating]:
    """Numbers of any real dtype as float32 or float64; the array itself where it is one of these already.

    Args:
        values: array, tensor or nested lists: bool, whole numbers of 8 to 64 bits, float16, bfloat16 (torch's
            or ml_dtypes'), float32, float64, long double (rounded to float64), in any byte order and layout.
        what: named in the error.

    Raises:
        UserError: complex numbers, text, times, Python objects, raw bytes.
    """
    array = _plain(values)
    kind, size = array.dtype.kind, array.dtype.itemsize
    if kind == "V" and array.dtype.type is not np.void:  # bfloat16 and the 8-bit floats of ml_dtypes
        return array.astype(np.float32)
    if kind not in "biuf":
        raise UserError(f"{what}: values of type {array.dtype}", "give real numbers")
    single = kind == "b" or f"{kind}{size}" in _SINGLE
    return np.asarray(array, np.float32 if single else np.float64)


def ordered_array(values: ArrayLike | torch.Tensor, what: str) -> NDArray[np.floating]:
    """As :func:`float_array`, but nothing that differs becomes equal: 64-bit whole numbers that float64
    cannot hold apart become their places in ascending order.
    """
    array = _plain(values)
    wide = array.dtype.kind in "iu" and array.dtype.itemsize == 8 and array.size
    if wide and (int(array.max()) > 2**53 or int(array.min()) < -(2**53)):
        return np.unique(array, return_inverse=True)[1].reshape(array.shape).astype(np.float64)
    return float_array(array, what)


def whole_labels(values: ArrayLike | torch.Tensor, what: str) -> NDArray[np.int64]:
    """Labels of any dtype as int64, if they are whole numbers that fit.

    Raises:
        UserError: a fraction, NaN, more than 64 bits with a sign, or no number at all; names the first row.
    """
    array = _plain(values)
    if array.dtype.kind == "u" and array.size and int(array.max()) > np.iinfo(np.int64).max:
        row = int(array.argmax())
        problem = f"{what}: row {row}: {array[row]} does not fit into 64 bits with a sign"
        raise UserError(problem, "number people and cameras from 1")
    if array.dtype.kind in "iub":
        return np.asarray(array, np.int64)
    if array.size == 0:
        return np.zeros(array.shape, np.int64)
    numbers = float_array(array, what).astype(np.float64)
    with np.errstate(invalid="ignore"):
        bad = ~(np.abs(numbers) < 2**53) | (numbers != np.floor(numbers))
    if bad.any():
        row = int(np.flatnonzero(bad)[0])
        raise UserError(f"{what}: row {row}: {numbers.flat[row]} is no whole number", "give whole numbers")
    return numbers.astype(np.int64)


def _plain(values: ArrayLike | torch.Tensor) -> NDArray[Any]:
    if isinstance(values, torch.Tensor):
        tensor = values.detach().cpu()
        exact = tensor.dtype in (torch.bfloat16, torch.float16)  # numpy has no bfloat16 of its own
        return np.asarray((tensor.float() if exact else tensor).numpy())
    return np.asarray(values)
