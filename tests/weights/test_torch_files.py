"""The reader of `torch.save`'s format: equal to torch's own on what people save, and closed to what corrupts memory."""

from __future__ import annotations

import collections
import copy
import io
import pickle
import struct
import zipfile

import pytest
import torch

from codetr_cli.weights import torch_files, unpickler

PICKLE = "archive/data.pkl"


def saved(content, **options):
    file = io.BytesIO()
    torch.save(content, file, **options)
    file.seek(0)
    return file


def with_pickle(data: bytes, *, storages=None):
    """A zip file with a hand-written pickle and storages of 16 bytes."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr(PICKLE, data)
        for key, value in (storages or {"0": bytes(16)}).items():
            archive.writestr(f"archive/data/{key}", value)
    file.seek(0)
    return file


def text(value: str) -> bytes:
    return pickle.BINUNICODE + struct.pack("<I", len(value)) + value.encode()


def storage(key="0", kind="FloatStorage", numel=4) -> bytes:
    numel_code = pickle.BININT + struct.pack("<i", numel)
    return b"(" + text("storage") + b"ctorch\n" + kind.encode() + b"\n" + text(key) + text("cpu") + numel_code + b"tQ"


def tensor(size=4, stride=1, offset=0, **of) -> bytes:
    numbers = [pickle.BININT + struct.pack("<i", number) for number in (offset, size, stride)]
    arguments = b"(" + storage(**of) + numbers[0] + numbers[1] + b"\x85" + numbers[2] + b"\x85\x89Nt"
    return b"ctorch._utils\n_rebuild_tensor_v2\n" + arguments + b"R"


@pytest.mark.parametrize("options", [{}, {"_use_new_zipfile_serialization": False}, {"pickle_protocol": 4}])
def test_everything_that_training_states_hold_reads_as_with_torch(options):
    network = torch.nn.Linear(4, 3)
    optimizer = torch.optim.AdamW(network.parameters())
    network(torch.ones(2, 4)).sum().backward()
    optimizer.step()
    base = torch.arange(12.0).reshape(3, 4)
    content = {
        "weights": network.state_dict(),
        "parameter": network.weight,
        "optimizer": optimizer.state_dict(),
        "views": [base, base[1:, ::2], base.T, base[:0], torch.tensor(7), torch.empty(0, 4)],
        "types": [torch.ones(3).to(dtype) for dtype in (torch.bfloat16, torch.float16, torch.bool, torch.complex64)],
        "numbers": (1, 2**70, -3, 1.5, None, True, "text", b"bytes", bytearray(b"x"), complex(1, 2), {1, 2}),
        "shape": torch.Size([2, 3]),
        "counter": collections.Counter([3, 3, 4]),
        5: {"nested": [{}, (), []]},
    }
    ours = torch_files.load(saved(content, **options))
    theirs = torch.load(saved(content), weights_only=True)  # noqa: TID251
    compare(ours, theirs)
    assert ours["views"][0].data_ptr() != 0
    ours["views"][0][1, 0] = 99
    assert ours["views"][1][0, 0] == 99, "views share their storage"


def compare(ours, theirs):
    if isinstance(theirs, torch.Tensor):
        assert ours.dtype == theirs.dtype
        assert torch.equal(ours, theirs)
        assert not ours.requires_grad
    elif isinstance(theirs, dict):
        assert list(ours) == list(theirs)
        for key, value in theirs.items():
            compare(ours[key], value)
    elif isinstance(theirs, (list, tuple)):
        assert isinstance(ours, (list, tuple))
        for a, b in zip(ours, theirs, strict=True):
            compare(a, b)
    else:
        assert (type(ours), ours) == (type(theirs), theirs)


def test_untyped_storages_read(tmp_path):
    """Types without a typed storage of their own, e.g. 16-bit unsigned integers."""
    value = torch.arange(5).to(torch.uint16)
    assert torch.equal(torch_files.load(saved([value]))[0].int(), value.int())


def test_mapped_tensors_do_not_write_to_the_file(tmp_path):
    path = tmp_path / "x.pth"
    torch.save({"w": torch.zeros(1000)}, path)
    before = path.read_bytes()
    torch_files.load(path, mapped=True)["w"].fill_(1)
    assert path.read_bytes() == before


def test_the_written_pickles_are_read_when_they_are_right():
    """The tests below would pass with pickles that nothing reads."""
    read = torch_files.load(with_pickle(b"\x80\x02" + tensor() + b"."))
    assert torch.equal(read, torch.zeros(4))


# A list of a list twice, of one twice ...: its text has 2 ** 80 brackets.
DOUBLING = b"]q\x000" + b"](h\x00h\x00eq\x000" * 80 + b"h\x00"
HOSTILE = {
    "items set in a tensor": tensor() + text("a") + text("b") + b"s",
    "items set in a tensor, many": tensor() + b"(" + text("a") + text("b") + b"u",
    "items set in a storage": storage() + text("a") + text("b") + b"s",
    "items set in a list": b"]K\x00K\x01s",
    "appended to a tensor": tensor() + b"K\x01a",
    "attributes of a tensor": tensor() + b"}b",
    "attributes of a function": b"ctorch._utils\n_rebuild_tensor_v2\nN}" + text("__defaults__") + b"Ns\x86b",
    "attributes of a class": b"cnumpy\ndtype\nN}" + text("__init__") + b"Ns\x86b",
    "a call of a tensor": tensor() + b")R",
    "a call of a storage's type": b"ctorch\nFloatStorage\n(K\x04tR",
    "a call of a text": text("os.system") + b")R",
    "an object of a text": text("x") + b")\x81",
    "storage larger than its data": tensor(numel=1000),
    "storage smaller than its data": tensor(numel=2, size=2),
    "storage of a wider type": tensor(kind="DoubleStorage"),
    "storage of negative size": tensor(numel=-4),
    "storage that is not there": tensor(key="1"),
    "storage elsewhere in the archive": tensor(key="../data.pkl"),
    "tensor larger than its storage": tensor(size=5),
    "tensor behind its storage": tensor(offset=1),
    "tensor before its storage": tensor(offset=-1),
    "negative size": tensor(size=-1),
    "negative stride": tensor(stride=-1),
    "long stride": tensor(stride=2),
    "other codec": b"c_codecs\nencode\n" + text("x") + text("zlib") + b"\x86R",
    "reserved memory": b"cbuiltins\nbytearray\nJ\x00\x00\x00\x7f\x85R",
    "itself": b"]q\x00h\x00a",
    "quantized numbers": b"ctorch\nqint8\n",
    "parts of bytes": b"ctorch\nbits4x2\n",
    "sparse tensor": b"ctorch._utils\n_rebuild_sparse_tensor\n)R",
    "key of deep tuples": b"})" + b"\x85" * 1000 + b"Ns",
    "key of doubling tuples": b"})" + b"q\x00h\x00\x86" * 80 + b"Ns",
    "item of doubling tuples": b"\x8f()" + b"q\x00h\x00\x86" * 80 + b"\x90",
    "frozen item of doubling tuples": b"()" + b"q\x00h\x00\x86" * 80 + b"\x91",
    "called items of doubling tuples": b"cbuiltins\nset\n])" + b"q\x00h\x00\x86" * 80 + b"a\x85R",
    "called keys of doubling tuples": b"ccollections\nOrderedDict\n])" + b"q\x00h\x00\x86" * 80 + b"N\x86a\x85R",
    "storage of a doubling key": b"("
    + text("storage")
    + b"ctorch\nFloatStorage\n"
    + DOUBLING
    + text("cpu")
    + b"K\x04tQ",
    "doubling text": b"c_codecs\nencode\n" + DOUBLING + text("latin1") + b"\x86R",
    "long number": b"\x8b" + struct.pack("<i", 1000) + bytes(999) + b"\x01",
    "many dimensions": b"ctorch._utils\n_rebuild_tensor_v2\n("
    + storage()
    + b"K\x00"
    + (b"(" + b"K\x01" * 65 + b"t") * 2
    + b"\x89NtR",
    "repeated conversions": b"]c_codecs\nencode\nq\x000"
    + text("x" * (1 << 20))
    + b"q\x010"
    + (b"h\x00h\x01" + text("latin1") + b"\x86R0") * 300,
    "registered extension": b"\x82\x01",
    "out of band": b"\x97",
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_pickles_are_refused(name):
    with pytest.raises((pickle.UnpicklingError, KeyError, TypeError, AttributeError)):
        torch_files.load(with_pickle(b"\x80\x02" + HOSTILE[name] + b"."))


def test_nothing_but_plain_values_comes_out():
    classes = b"\x80\x02]" + b"".join(
        [b"cnumpy\ndtype\na", b"ctorch\nFloatStorage\na", storage() + b"a", b"c_codecs\nencode\na"]
    )
    for value in torch_files.load(with_pickle(classes + b".")):
        assert type(value) is unpickler.UnpickledStub


def test_members_are_compared_with_their_checksums_and_the_end_of_the_file():
    file = with_pickle(b"\x80\x02" + tensor() + b".")
    data = bytearray(file.getvalue())
    at = data.index(bytes(16))
    data[at] = 1
    with pytest.raises(zipfile.BadZipFile, match="CRC-32"):
        torch_files.load(io.BytesIO(data))
    data = bytearray(file.getvalue())
    central = data.rindex(b"PK\x01\x02")
    struct.pack_into("<II", data, central + 20, 1 << 20, 1 << 20)  # both sizes
    with pytest.raises((zipfile.BadZipFile, pickle.UnpicklingError)):
        torch_files.load(io.BytesIO(data))


@pytest.mark.parametrize("method", [zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2])
def test_members_that_become_much_larger_are_refused(method):
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", method) as archive:
        archive.writestr(PICKLE, b"\x80\x02N.")
        archive.writestr("archive/data/0", bytes(1 << 20))
    file.seek(0)
    with pytest.raises(zipfile.BadZipFile, match=r"larger|unusual"):
        torch_files.load(file)


def test_members_that_overlap_are_refused():
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr(PICKLE, b"\x80\x02N.")
        archive.writestr("archive/data/0", bytes(4096))
        for number in range(1, 10):  # more entries of the same bytes
            entry = copy.copy(archive.getinfo("archive/data/0"))
            entry.filename = f"archive/data/{number}"
            archive.filelist.append(entry)
    file.seek(0)
    with pytest.raises(zipfile.BadZipFile, match="overlap"):
        torch_files.load(file)


def test_a_storage_is_described_by_a_short_tuple():
    """A long one, of which the pickle has one copy, would be copied for every storage."""
    described = b"(" + text("storage") + b"ctorch\nFloatStorage\n" + text("0") + text("cpu") + b"K\x04"
    for pid in (described + b"N" * 10_000 + b"t", b"]" + described + b"N" * 10_000 + b"e", b"]" + described + b"e"):
        with pytest.raises(pickle.UnpicklingError, match="unknown kind of storage"):
            torch_files.load(with_pickle(b"\x80\x02" + pid + b"Q."))
    for pid in (described + b"t", described + b"Nt"):  # as zip files and as legacy files have them
        assert type(torch_files.load(with_pickle(b"\x80\x02" + pid + b"Q."))) is unpickler.UnpickledStub


def test_tuples_of_numbers_and_text_can_be_keys():
    content = {(1, "a"): 2, None: {(3, "b")}}
    assert torch_files.load(saved(content)) == content


def test_a_legacy_file_with_a_pretended_size_is_refused():
    data = saved({"w": torch.ones(4)}, _use_new_zipfile_serialization=False).getvalue()
    at = data.rindex(struct.pack("<q", 4))
    for numel in (1 << 40, 3, -1):
        with pytest.raises((pickle.UnpicklingError, struct.error)):
            torch_files.load(io.BytesIO(data[:at] + struct.pack("<q", numel) + data[at + 8 :]))


def test_files_of_the_other_byte_order_are_refused():
    file = with_pickle(b"\x80\x02N.")
    with zipfile.ZipFile(file, "a") as archive:
        archive.writestr("archive/byteorder", "big")
    file.seek(0)
    with pytest.raises(pickle.UnpicklingError, match="byte order"):
        torch_files.load(file)
