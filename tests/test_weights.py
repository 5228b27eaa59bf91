"""Weights: the safetensors format, read without trusting it."""

import json
import math
import struct
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from autoresearch.guest import safetensors_format
from autoresearch.guest.safetensors_format import (
    InvalidWeights,
    NonFiniteWeights,
    RawTensor,
)

FLOATS = ("F64", "F32", "F16", "BF16")


def file_of(header: object, body: bytes = b"") -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + body


def entry(dtype="F32", shape=(1,), offsets=(0, 4)):
    return {"dtype": dtype, "shape": list(shape), "data_offsets": list(offsets)}


def good() -> bytes:
    one = np.arange(6, dtype="<f4").tobytes()
    two = np.arange(3, dtype="<i8").tobytes()
    return safetensors_format.encode(
        {"one": RawTensor("F32", (2, 3), one), "two": RawTensor("I64", (3,), two)}
    )


# -- with the official library ---------------------------------------------------------


def every_dtype() -> dict:
    torch = pytest.importorskip("torch")
    torch.manual_seed(1)
    dtypes = {
        "F64": torch.float64,
        "F32": torch.float32,
        "F16": torch.float16,
        "BF16": torch.bfloat16,
        "I64": torch.int64,
        "I32": torch.int32,
        "I16": torch.int16,
        "I8": torch.int8,
        "U8": torch.uint8,
        "BOOL": torch.bool,
    }
    assert set(dtypes) == set(safetensors_format.DTYPE_BYTES)
    return {name: (torch.randn(3, 5) * 9).to(dtype) for name, dtype in dtypes.items()}


def raw(tensor) -> bytes:
    torch = pytest.importorskip("torch")
    return tensor.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()


def test_what_the_library_writes_we_read():
    tensors = every_dtype()
    library = pytest.importorskip("safetensors.torch")

    ours = safetensors_format.decode(library.save(tensors, metadata={"format": "pt"}))

    assert set(ours) == set(tensors)
    for name, tensor in tensors.items():
        assert ours[name].dtype == name
        assert ours[name].shape == (3, 5)
        assert bytes(ours[name].raw) == raw(tensor)


def test_what_we_write_the_library_reads():
    tensors = every_dtype()
    library = pytest.importorskip("safetensors.torch")

    file = safetensors_format.encode(
        {k: RawTensor(k, (3, 5), raw(t)) for k, t in tensors.items()}
    )
    theirs = library.load(file)

    assert all(theirs[name].dtype == tensor.dtype for name, tensor in tensors.items())
    assert all(theirs[name].equal(tensor) for name, tensor in tensors.items())


def test_what_we_write_the_library_maps_whatever_order_it_came_in(tmp_path):
    torch = pytest.importorskip("torch")
    library = pytest.importorskip("safetensors.torch")
    path = tmp_path / "model.safetensors"
    # An odd byte first would push the doubles off their boundary.
    path.write_bytes(
        safetensors_format.encode(
            {
                "flag": RawTensor("U8", (1,), b"\x07"),
                "half": RawTensor("BF16", (1,), raw(torch.tensor([1.5]).bfloat16())),
                "wide": RawTensor("F64", (2,), struct.pack("<2d", 0.5, -3.0)),
            }
        )
    )

    found = library.load_file(path)

    assert found["wide"].tolist() == [0.5, -3.0]
    assert found["half"].tolist() == [1.5]
    assert found["flag"].tolist() == [7]


@pytest.mark.parametrize("shape", [(), (0,), (0, 7), (1, 1, 1)])
def test_scalars_and_empty_tensors_survive_both_ways(shape):
    torch = pytest.importorskip("torch")
    library = pytest.importorskip("safetensors.torch")
    tensor = torch.ones(shape)
    others = {"a": torch.zeros(2), "b": tensor, "c": torch.zeros(3)}

    ours = safetensors_format.decode(library.save(others))
    theirs = library.load(safetensors_format.encode(ours))

    assert ours["b"].shape == shape
    assert theirs["b"].equal(tensor)


# -- what is refused -------------------------------------------------------------------


@pytest.mark.parametrize(
    "file",
    [
        b"",
        b"1234567",
        struct.pack("<Q", 2**63),
        struct.pack("<Q", 9) + b"{}",
        file_of(b""),
        file_of(b"no json"),
        file_of(b"\xff\xff"),
        file_of(b"[]"),
        file_of(b"[" * 100_000),
        file_of(b'{"a":' * 100_000),
        file_of(b'{"a": ' + b"9" * 5000 + b"}"),
        file_of({"a": None}),
        file_of({"a": []}),
        file_of({"a": {"dtype": "F32"}}),
        file_of({"a": entry("F31")}, bytes(4)),
        file_of({"a": entry(dtype=["F32"])}, bytes(4)),
        file_of({"a": entry(shape=[1.0])}, bytes(4)),
        file_of({"a": entry(shape=[True])}, bytes(4)),
        file_of({"a": entry(shape=["1"])}, bytes(4)),
        file_of({"a": entry(shape=[-1], offsets=[4, 0])}, bytes(4)),
        file_of({"a": entry(shape=[2**64], offsets=[0, 0])}),
        file_of({"a": entry(offsets=[0])}, bytes(4)),
        file_of({"a": entry(offsets=[0, 4, 4])}, bytes(4)),
        file_of({"a": entry(offsets=[0, 5])}, bytes(4)),
        file_of({"a": entry(offsets=[-4, 0])}, bytes(4)),
        file_of({"a": entry(offsets=[4, 8])}, bytes(4)),
        file_of({"a": entry(shape=[2])}, bytes(4)),
        file_of({"a": entry()}, bytes(5)),
        file_of({"a": entry(offsets=[4, 8])}, bytes(8)),
        file_of({}, bytes(1)),
    ],
    ids=range(30),
)
def test_a_file_that_lies_about_itself_is_refused(file):
    with pytest.raises(InvalidWeights):
        safetensors_format.validate_weights(file)


def test_an_overlap_cannot_hide_behind_a_gap_of_its_size():
    header = {"a": entry(offsets=[0, 4]), "b": entry(offsets=[0, 4])}

    with pytest.raises(InvalidWeights, match="overlap"):
        safetensors_format.decode(file_of(header, bytes(8)))


@pytest.mark.parametrize("cut", [1, 7, 8, 20, 60])
def test_a_file_that_was_cut_short_is_refused(cut):
    with pytest.raises(InvalidWeights):
        safetensors_format.validate_weights(good()[:-cut])


def test_nearly_a_million_dimensions_are_refused_at_once():
    shape = [2**47] * 900_000  # their product has 42 million bits

    with pytest.raises(InvalidWeights, match="invalid dtype, shape or offset"):
        safetensors_format.decode(file_of({"a": entry(shape=shape)}, bytes(4)))


def test_a_name_of_a_million_letters_does_not_fill_the_message():
    with pytest.raises(InvalidWeights) as refused:
        safetensors_format.decode(file_of({"n" * 1_000_000: None}))

    assert len(str(refused.value)) < 200


@given(st.binary(max_size=400))
def test_random_bytes_are_invalid_weights_and_never_another_error(noise):
    with pytest.raises(InvalidWeights):
        safetensors_format.validate_weights(noise)


@given(st.binary(max_size=200), st.binary(max_size=40))
def test_a_random_header_is_invalid_weights_and_never_another_error(header, body):
    try:
        safetensors_format.validate_weights(file_of(header, body))
    except InvalidWeights:
        pass
    else:  # nothing but an empty table passes
        assert json.loads(header).keys() <= {"__metadata__"}
        assert not body


JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.sampled_from(["F32", "BF16", "shape", "dtype", "data_offsets", ""]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner),
    max_leaves=8,
)


@given(JSON, JSON, JSON, JSON, st.binary(max_size=16))
def test_random_tables_are_invalid_weights_and_never_another_error(a, b, c, d, body):
    header = {"x": {"dtype": a, "shape": b, "data_offsets": c}, "y": d}
    with pytest.raises(InvalidWeights):
        safetensors_format.validate_weights(file_of(header, body))


@given(st.data())
def test_a_flipped_bit_is_refused_or_changes_only_numbers_and_names(data):
    file = bytearray(good())
    at = data.draw(st.integers(0, len(file) * 8 - 1))
    file[at // 8] ^= 1 << at % 8

    try:
        found = safetensors_format.decode(bytes(file))
    except InvalidWeights:
        return
    blocks = b"".join(bytes(tensor.raw) for tensor in found.values())
    assert len(blocks) == 24 + 24


# -- numbers that are not finite -------------------------------------------------------


def bits(dtype: str, number: float) -> bytes:
    if dtype == "BF16":
        return struct.pack("<f", number)[2:]
    return struct.pack({"F64": "<d", "F32": "<f", "F16": "<e"}[dtype], number)


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("bad", [math.nan, -math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("at", [0, 500, 999])
def test_one_number_that_is_not_finite_is_found(dtype, bad, at):
    numbers = [bits(dtype, 1.0)] * 1000
    numbers[at] = bits(dtype, bad)

    file = safetensors_format.encode(
        {"w": RawTensor(dtype, (1000,), b"".join(numbers))}
    )

    with pytest.raises(NonFiniteWeights, match="w"):
        safetensors_format.validate_weights(file)


@pytest.mark.parametrize("dtype", FLOATS)
def test_the_largest_the_smallest_and_zero_are_finite(dtype):
    largest = {"F16": 65504.0, "F64": 1.7e308}.get(dtype, 3e38)
    numbers = [bits(dtype, n) for n in (largest, -largest, 0.0, -0.0, 1e-7)]

    file = safetensors_format.encode({"w": RawTensor(dtype, (5,), b"".join(numbers))})

    assert safetensors_format.validate_weights(file) == 5


def test_signalling_nans_are_found_too():
    for dtype, word in (("F32", "<I"), ("F64", "<Q")):
        quiet = 0x7F800001 if dtype == "F32" else 0x7FF0000000000001
        tensor = RawTensor(dtype, (1,), struct.pack(word, quiet))
        assert not safetensors_format.is_finite(tensor)


def test_whole_numbers_are_finite_whatever_their_bits():
    file = safetensors_format.encode({"w": RawTensor("I32", (4,), b"\xff" * 16)})

    assert safetensors_format.validate_weights(file) == 4


def test_numbers_are_checked_without_numpy_as_with_it():
    blocked = (
        "import sys; sys.modules['numpy'] = None\n"
        "from autoresearch.guest import safetensors_format as weights\n"
        "for dtype, width in (('F64', 8), ('F32', 4), ('F16', 2), ('BF16', 2)):\n"
        "    fine = weights.RawTensor(dtype, (9,), bytes(9 * width))\n"
        "    odd = weights.RawTensor(dtype, (9,), bytes(8 * width) + b'\\xff' * width)\n"
        "    assert weights.is_finite(fine), dtype\n"
        "    assert not weights.is_finite(odd), dtype\n"
    )

    subprocess.run((sys.executable, "-c", blocked), check=True)


def test_plain_floats_come_back_to_the_last_bit():
    numbers = [0.1, -0.0, 5e-324, 1.7976931348623157e308, math.pi]

    file = safetensors_format.encode(
        {"line": safetensors_format.tensor_from_floats(numbers)}
    )

    back = safetensors_format.tensor_to_floats(safetensors_format.decode(file)["line"])
    assert struct.pack("5d", *back) == struct.pack("5d", *numbers)
