"""The safetensors format, read and written with the standard library only.

A file is an 8-byte length, a JSON header, and raw little-endian numbers. The training
process writes it; the harness only checks it and passes it on. The official library
reads these files (a test does). It is not used in the harness because the checks are
what matters there, and not in the sandbox because lab `line` has no numpy.

Covered: sizes, offsets, shapes, overlaps, unknown dtypes, numbers that are not finite.
Not covered: whether the weights are any good.
"""

import json
import struct
from array import array
from collections.abc import Iterable, Mapping
from math import prod
from typing import NamedTuple

DTYPE_BYTES = {
    "F64": 8,
    "F32": 4,
    "F16": 2,
    "BF16": 2,
    "I64": 8,
    "I32": 4,
    "I16": 2,
    "I8": 1,
    "U8": 1,
    "BOOL": 1,
}
# dtype -> (integer type code, exponent mask): all exponent bits set is inf or nan.
EXPONENT_MASKS = {
    "F64": ("Q", 0x7FF0_0000_0000_0000),
    "F32": ("I", 0x7F80_0000),
    "F16": ("H", 0x7C00),
    "BF16": ("H", 0x7F80),
}
MAX_HEADER_BYTES = 16 << 20
MAX_DIMENSIONS = 32  # multiplying a million of them would take hours


class InvalidWeights(Exception):
    """The bytes are not a valid safetensors file; the message says why."""


class NonFiniteWeights(InvalidWeights):
    """Training diverged: a weight is inf or nan."""


class RawTensor(NamedTuple):
    """A tensor as raw little-endian bytes."""

    dtype: str
    shape: tuple[int, ...]
    raw: bytes | memoryview


ModelState = Mapping[str, RawTensor]  # name -> parameter or buffer


def encode(tensors: ModelState) -> bytes:
    """Named tensors -> the bytes of a safetensors file."""
    return b"".join(encode_parts(tensors))


def encode_parts(tensors: ModelState) -> list[bytes | memoryview]:
    """Like `encode`, in pieces and without copying: the tensors may take a gigabyte.

    Wide dtypes come first, so that each tensor is aligned to its width: readers that
    map the file require that.
    """
    header: dict[str, object] = {}
    offset = 0
    wide_first = dict(sorted(tensors.items(), key=lambda t: -DTYPE_BYTES[t[1].dtype]))
    for name, tensor in wide_first.items():
        end = offset + len(tensor.raw)
        header[name] = {
            "dtype": tensor.dtype,
            "shape": list(tensor.shape),
            "data_offsets": [offset, end],
        }
        offset = end
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    blocks = [tensor.raw for tensor in wide_first.values()]
    return [struct.pack("<Q", len(text)), text, *blocks]


def decode(file: bytes | memoryview) -> dict[str, RawTensor]:
    """The bytes of a safetensors file -> named tensors; raises InvalidWeights."""
    if len(file) < 8:
        raise InvalidWeights("the file is too short for a header")
    (length,) = struct.unpack_from("<Q", file)
    if length > min(MAX_HEADER_BYTES, len(file) - 8):
        raise InvalidWeights(f"the header claims {length} bytes")
    try:
        header = json.loads(bytes(file[8 : 8 + length]))
    except (ValueError, RecursionError):
        raise InvalidWeights("the header is not JSON") from None
    if not isinstance(header, dict):
        raise InvalidWeights("the header is not a JSON object")
    header.pop("__metadata__", None)
    body = memoryview(file)[8 + length :]
    tensors = {name: _parse_tensor(name, entry, body) for name, entry in header.items()}
    end = 0
    for start, stop in sorted(entry["data_offsets"] for entry in header.values()):
        if start != end:
            raise InvalidWeights("tensors overlap or leave gaps")
        end = stop
    if end != len(body):
        raise InvalidWeights("bytes at the end belong to no tensor")
    return tensors


def _parse_tensor(name: str, entry: object, body: memoryview) -> RawTensor:
    match entry:
        case {"dtype": str(dtype), "shape": [*shape], "data_offsets": [start, end]}:
            pass
        case _:
            raise InvalidWeights(f"{name[:80]!r} has no dtype, shape or offsets")
    valid = all(type(n) is int and 0 <= n < 2**48 for n in [*shape, start, end])
    valid = valid and len(shape) <= MAX_DIMENSIONS
    if dtype not in DTYPE_BYTES or not valid or not start <= end <= len(body):
        raise InvalidWeights(f"{name[:80]!r} has an invalid dtype, shape or offset")
    if prod(shape) * DTYPE_BYTES[dtype] != end - start:
        raise InvalidWeights(f"{name[:80]!r} has a shape that does not fit its size")
    return RawTensor(dtype, tuple(shape), body[start:end])


def validate_weights(file: bytes | memoryview) -> int:
    """Check untrusted weights and count their elements.

    Raises InvalidWeights, or NonFiniteWeights for an inf or nan.
    """
    count = 0
    for name, tensor in decode(file).items():
        if not is_finite(tensor):
            raise NonFiniteWeights(f"{name[:80]!r} holds numbers that are not finite")
        count += prod(tensor.shape)
    return count


def is_finite(tensor: RawTensor) -> bool:
    """Whether no element is inf or nan."""
    if tensor.dtype not in EXPONENT_MASKS or not len(tensor.raw):
        return True
    code, mask = EXPONENT_MASKS[tensor.dtype]
    try:
        import numpy as np
    except ImportError:
        numbers = array(code, bytes(tensor.raw))
        return all(number & mask != mask for number in numbers)
    words = np.frombuffer(tensor.raw, dtype=np.dtype(code).newbyteorder("<"))
    chunk = 1 << 24  # bounds the mask's own memory
    return not any(
        bool(((words[i : i + chunk] & mask) == mask).any())
        for i in range(0, len(words), chunk)
    )


def tensor_from_floats(numbers: Iterable[float]) -> RawTensor:
    """Numbers -> a float64 tensor (N,), for labs without torch."""
    values = array("d", numbers)
    return RawTensor("F64", (len(values),), values.tobytes())


def tensor_to_floats(tensor: RawTensor) -> list[float]:
    """The inverse of `tensor_from_floats`."""
    values = array("d")
    values.frombytes(bytes(tensor.raw))
    return values.tolist()
