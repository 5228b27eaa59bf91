"""The safetensors format, read and written without trusting or importing anything.

A file is an 8-byte length, a JSON header, and raw little-endian numbers. The guest
writes it from whatever it trained; the harness only checks it and passes it on. The
official library reads these files (a test does); it is not used on the trusted side
because the checks *are* the point there, and not in the guest because lab `line` has
no numpy.

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
MAX_DIMENSIONS = 32  # the product of a million would take the harness hours


class InvalidWeights(Exception):
    """These bytes are not weights; the message says why."""


class NonFiniteWeights(InvalidWeights):
    """Training diverged: an inf or a nan among the weights."""


class RawTensor(NamedTuple):
    """One named block of numbers, as raw bytes."""

    dtype: str
    shape: tuple[int, ...]
    raw: bytes | memoryview


ModelState = Mapping[str, RawTensor]  # all that a trained model is, by name


def encode(tensors: ModelState) -> bytes:
    """Named tensors -> the bytes of a safetensors file."""
    return b"".join(encode_parts(tensors))


def encode_parts(tensors: ModelState) -> list[bytes | memoryview]:
    """The same in pieces, the numbers not copied: there may be a gigabyte of them.

    Wide numbers first, so that each lies at a multiple of its width: readers that map
    the file refuse others.
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
    """The bytes of a safetensors file -> named tensors, or BadWeights."""
    if len(file) < 8:
        raise InvalidWeights("too short for a header")
    (length,) = struct.unpack_from("<Q", file)
    if length > min(MAX_HEADER_BYTES, len(file) - 8):
        raise InvalidWeights(f"a header of {length} bytes")
    try:
        header = json.loads(bytes(file[8 : 8 + length]))
    except (ValueError, RecursionError):
        raise InvalidWeights("a header that is not JSON") from None
    if not isinstance(header, dict):
        raise InvalidWeights("a header that is not a table")
    header.pop("__metadata__", None)
    body = memoryview(file)[8 + length :]
    tensors = {name: _parse_tensor(name, entry, body) for name, entry in header.items()}
    end = 0
    for start, stop in sorted(entry["data_offsets"] for entry in header.values()):
        if start != end:
            raise InvalidWeights("blocks that overlap or leave gaps")
        end = stop
    if end != len(body):
        raise InvalidWeights("bytes that belong to no block")
    return tensors


def _parse_tensor(name: str, entry: object, body: memoryview) -> RawTensor:
    match entry:
        case {"dtype": str(dtype), "shape": [*shape], "data_offsets": [start, end]}:
            pass
        case _:
            raise InvalidWeights(f"no dtype, shape and place for {name[:80]!r}")
    whole = all(type(n) is int and 0 <= n < 2**48 for n in [*shape, start, end])
    whole = whole and len(shape) <= MAX_DIMENSIONS
    if dtype not in DTYPE_BYTES or not whole or not start <= end <= len(body):
        raise InvalidWeights(f"nonsense about {name[:80]!r}")
    if prod(shape) * DTYPE_BYTES[dtype] != end - start:
        raise InvalidWeights(f"a shape that does not fit its bytes for {name[:80]!r}")
    return RawTensor(dtype, tuple(shape), body[start:end])


def validate_weights(file: bytes | memoryview) -> int:
    """Check weights that came from outside; return how many numbers they hold."""
    count = 0
    for name, tensor in decode(file).items():
        if not is_finite(tensor):
            raise NonFiniteWeights(f"{name[:80]!r} holds numbers that are not finite")
        count += prod(tensor.shape)
    return count


def is_finite(tensor: RawTensor) -> bool:
    """Whether no number in the tensor is inf or nan."""
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
    """A plain Python list of numbers as float64, for labs without tensors."""
    values = array("d", numbers)
    return RawTensor("F64", (len(values),), values.tobytes())


def tensor_to_floats(tensor: RawTensor) -> list[float]:
    """The inverse of `from_floats`."""
    values = array("d")
    values.frombytes(bytes(tensor.raw))
    return values.tolist()
