"""The messages of the policy server: msgpack-numpy's encoding byte for byte, and nothing that could harm the reader."""

import random
import time
import tracemalloc

import msgpack
import numpy as np
import pytest

from gr00t.data.schema import ModalityConfig
from gr00t.errors import ToolkitError
from gr00t.server import messages
from gr00t.server.messages import decode, pack, unpack

# Made by msgpack-numpy 0.4.8 under msgpack 1.2.4, as NVIDIA's client does it.
RECORDED = {
    "request": (
        {
            "endpoint": "get_action",
            "data": {
                "observation": {"state": {"arm": np.arange(3, dtype=np.float32).reshape(1, 1, 3)}},
                "options": None,
            },
        },
        "82a8656e64706f696e74aa6765745f616374696f6ea46461746182ab6f62736572766174696f6e81a5737461746581a361726d85c4026e64"
        "c3c40474797065a33c6634c4046b696e64c400c405736861706593010103c40464617461c40c000000000000803f00000040a76f7074696f"
        "6e73c0",
    ),
    "numbers": (
        {
            "s": np.float32(1.5),
            "b": np.array([True]),
            "i": np.zeros((1, 1, 2, 2, 3), np.uint8),
            "o": 1,
        },
        "84a17383c4026e64c2c40474797065a33c6634c40464617461c4040000c03fa16285c4026e64c3c40474797065a37c6231c4046b696e64c4"
        "00c40573686170659101c40464617461c40101a16985c4026e64c3c40474797065a37c7531c4046b696e64c400c405736861706595010102"
        "0203c40464617461c40c000000000000000000000000a16f01",
    ),
}


def array(**changed):
    """The map that describes np.zeros(3, float32), changed."""
    return {"nd": True, "type": "<f4", "kind": "", "shape": [3], "data": bytes(12), **changed}


def same(left, right):
    if isinstance(left, dict):
        return left.keys() == right.keys() and all(same(left[key], right[key]) for key in left)
    if isinstance(left, np.ndarray | np.generic):
        return left.dtype == right.dtype and left.shape == right.shape and (left == right).all()
    return left == right


@pytest.mark.parametrize("name", RECORDED)
def test_messages_are_msgpack_numpys_byte_for_byte(name):
    value, recorded = RECORDED[name]
    assert pack(value).hex() == recorded
    assert same(decode(unpack(bytes.fromhex(recorded))), value)


@pytest.mark.parametrize("dtype", ["?", "u1", "i2", "<i8", ">i4", "f2", "<f4", ">f4", "f8"])
def test_arrays_of_numbers_come_back_as_they_were_in_native_order_and_writable(dtype):
    given = np.arange(24).reshape(2, 3, 4).astype(dtype)
    for value in (given, given.T, given[:0], given[..., :1]):
        found = decode(unpack(pack({"value": value})))["value"]
        assert same(found, value.astype(value.dtype.newbyteorder("="))) and found.dtype.isnative
    assert decode(unpack(pack(given))).flags.writeable


def test_keys_of_an_array_may_be_texts_or_bytes():
    as_bytes = {key.encode(): value for key, value in array().items()}
    assert same(decode(unpack(msgpack.packb(as_bytes))), decode(unpack(msgpack.packb(array()))))


def test_a_modality_config_goes_as_json():
    config = ModalityConfig([0], ["arm"])
    assert unpack(pack({"state": config})) == {"state": {"__ModalityConfig__": True, "as_json": config.to_json()}}


@pytest.mark.parametrize(
    "value",
    [
        np.array([{}], dtype=object),
        np.array(["text"]),
        np.array([1j]),
        np.zeros(1, dtype=[("a", "f4")]),
        np.datetime64("now"),
        object(),
        {1, 2},
        2**70,
        "\ud800",
    ],
    ids=lambda value: type(value).__name__,
)
def test_what_is_no_plain_value_or_array_of_numbers_is_not_sent(value):
    with pytest.raises(ToolkitError):
        pack({"value": value})


# what is refused on arrival


REFUSED_ARRAYS = {
    "object array": (array(kind="O", type="|O"), "pickle"),
    "object array, bytes": ({b"nd": True, b"kind": b"O", b"type": b"O", b"data": b"cos\nsystem\n"}, "pickle"),
    "object array, truthy nd": (array(nd=1, kind="O"), "pickle"),
    "object dtype": (array(type="|O"), "pickle"),
    "object dtype of any spelling": (array(type="object"), "type"),
    "structured": (array(kind="V", type=[["a", "<f4"]]), "type"),
    "void": (array(type="|V100000000", shape=[1], data=b""), "type"),
    "text": (array(type="<U3", shape=[1]), "type"),
    "time": (array(type="<M8[ns]"), "type"),
    "several": (array(type="f4,f4"), "type"),
    "no type": ({"nd": True, "shape": [3], "data": bytes(12)}, "type"),
    "type of bytes": (array(type=b"\xff"), "type"),
    "negative size": (array(shape=[-3]), "shape"),
    "negative sizes": (array(shape=[-1, -3]), "shape"),
    "true size": (array(shape=[True, 3]), "shape"),
    "fractional size": (array(shape=[3.0]), "shape"),
    "huge size": (array(shape=[2**62, 2**62]), "shape"),
    "huge empty": (array(shape=[0, 2**40, 2**40], data=b""), "shape"),
    "many sizes": (array(shape=[1] * 33 + [3]), "shape"),
    "no shape": (array(shape=None), "shape"),
    "shape is a number": (array(shape=3), "shape"),
    "too little data": (array(shape=[4]), "16 bytes"),
    "too much data": (array(shape=[2]), "8 bytes"),
    "data is text": (array(data="000000000000"), "str"),
    "no data": (array(data=None), "NoneType"),
    "scalar with a shape's data": (array(nd=False), "4 bytes"),
    "encoding of N1.6": ({"__ndarray_class__": True, "as_npy": b"\x93NUMPY"}, "N1.6"),
}


@pytest.mark.parametrize("name", REFUSED_ARRAYS)
def test_an_array_that_is_not_what_it_says_is_refused(name):
    described, said = REFUSED_ARRAYS[name]
    with pytest.raises(ToolkitError, match=said):
        decode(unpack(msgpack.packb({"state": described})))


BOMBS = {
    "nothing": b"",
    "claimed list": b"\xdd\xff\xff\xff\xff",
    "claimed map": b"\xdf\xff\xff\xff\xff",
    "claimed text": b"\xdb\xff\xff\xff\xff",
    "claimed bytes": b"\xc6\xff\xff\xff\xff",
    "claimed lists in lists": b"\xdd\x00\x00\x10\x00" * 100_000,
    "deep lists": b"\x91" * 100_000 + b"\xc0",
    "deep maps": b"\x81\xa1a" * 100_000 + b"\xc0",
    "quite deep": b"\x91" * 50 + b"\xc0",
    "many empty maps": b"\xdc\x0f\xff" * 3 + (b"\xdc\x0f\xff" + b"\x80" * 4095) * 2000,
    "long text": msgpack.packb("x" * 20_000),
    "wide map": msgpack.packb({str(i): i for i in range(100)}),
    "list as a key": b"\x81\x91\x01\x02",
    "number as a key": b"\x81\x01\x02",
    "bytes as a key that are no text": b"\x81\xc4\x01\xff\x02",
    "no text": b"\xa1\xff",
    "extension": msgpack.packb(msgpack.ExtType(5, b"abc")),
    "empty extension": msgpack.packb(msgpack.ExtType(5, b"")),
    "time": msgpack.packb(msgpack.Timestamp(1, 0)),
    "two messages": b"\xc0\xc0",
    "unused code": b"\xc1",
    "too large": bytes(messages.MAX_MESSAGE + 1),
}


@pytest.mark.parametrize("name", BOMBS)
def test_a_bomb_is_refused_at_once_and_without_taking_memory(name):
    tracemalloc.start()
    begin = time.process_time()
    with pytest.raises(ToolkitError):
        decode(unpack(BOMBS[name]))
    seconds, (_, peak) = time.process_time() - begin, tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert seconds < 2 and peak < 100 * 2**20


def test_whatever_bytes_come_only_a_toolkit_error_is_raised():
    rng = random.Random(0)
    whole = bytes.fromhex(RECORDED["request"][1])
    cut = [whole[:length] for length in range(len(whole))]
    changed = []
    for _ in range(3000):
        message = bytearray(whole)
        for _ in range(rng.randint(1, 4)):
            message[rng.randrange(len(message))] = rng.randrange(256)
        changed.append(bytes(message))
    noise = [rng.randbytes(rng.randint(1, 200)) for _ in range(3000)]
    refused = 0
    for message in cut + changed + noise:
        try:
            decode(unpack(message))
        except ToolkitError:
            refused += 1
    assert refused > len(cut) + 2000
