"""Malicious pickles by kind of operation: each is refused as a bad checkpoint, and nothing that it names is imported.

They are the pickle of a `.pth` file in the zip and in the legacy format, and of the training state of a run.
"""

from __future__ import annotations

import copyreg
import pickle
import struct
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from codetr_cli.errors import CheckpointError
from codetr_cli.runs.folder import read_state
from codetr_cli.weights import torch_files
from codetr_cli.weights.pickles import read_pickle
from codetr_cli.weights.unpickler import Budget

LEGACY_HEAD = b"".join(
    pickle.dumps(value, 2)
    for value in (0x1950A86A20F9469CFC6C, 1001, {"protocol_version": 1001, "little_endian": True})
)
MODULE = "hostile_module"  # on the import path; importing it writes the sentinel, and so do its functions


def text(value: str) -> bytes:
    return b"X" + struct.pack("<I", len(value.encode())) + value.encode()


def called(module: str, name: str, *arguments: str) -> bytes:
    """A call, as every protocol writes it."""
    return f"c{module}\n{name}\n".encode() + b"(" + b"".join(map(text, arguments)) + b"tR"


NAMES = (
    "os.system", "posix.system", "nt.system", "os.popen", "os.execv", "os.spawnv", "os.remove", "os.putenv",
    "subprocess.Popen", "subprocess.check_output", "commands.getoutput", "pty.spawn", "shutil.rmtree", "builtins.eval",
    "builtins.exec", "builtins.compile", "builtins.open", "builtins.__import__", "builtins.globals", "builtins.type",
    "builtins.setattr", "builtins.apply", "__builtin__.eval", "__builtin__.execfile", "io.open", "io.FileIO",
    "_io.open_code", "codecs.open", "importlib.import_module", "importlib.reload", "imp.load_source", "runpy.run_path",
    "pkgutil.get_data", "zipimport.zipimporter", "code.interact", "pickle.loads", "_pickle.loads", "marshal.loads",
    "types.FunctionType", "types.CodeType", "functools.partial", "functools.reduce", "operator.attrgetter",
    "operator.methodcaller", "operator.itemgetter", "copyreg._reconstructor", "copyreg.__newobj__",
    "copy_reg.add_extension",
    "ctypes.CDLL", "ctypes.util.find_library", "_ctypes.dlopen", "mmap.mmap", "socket.socket", "urllib.request.urlopen",
    "http.server.test", "webbrowser.open", "antigravity.geohash", "this.s", "timeit.timeit", "cProfile.run", "pdb.run",
    "logging.config.fileConfig", "tempfile.mktemp", "collections.namedtuple", "asyncio.run", "multiprocessing.Process",
    "torch.load", "torch.hub.load", "torch.jit.load", "torch.compile", "torch.classes.load_library",
    "torch.ops.load_library",
    "torch.serialization.load", "torch.storage._load_from_bytes", "torch.storage.TypedStorage",
    "torch.utils.cpp_extension.load",
    "torch._dynamo.guards.exec", "torch.distributed.checkpoint.metadata.Metadata", "torch.cuda.check_error",
    "torch._utils._rebuild_sparse_tensor", "torch._utils._rebuild_device_tensor_from_numpy",
    "torch.nn.modules.linear.Linear",
    "numpy.load", "numpy.fromfile", "numpy.memmap", "numpy.testing._private.utils.runstring", "numpy.f2py.compile",
    "safetensors.torch.load_file", "yaml.unsafe_load", "codetr_cli.files.cache_dir",
    "mmengine.config.config.Config.fromfile",
    f"{MODULE}.run",
)  # fmt: skip


def list_of(*values: bytes) -> bytes:
    return b"(" + b"".join(values) + b"l"


OPERATIONS = {
    "GLOBAL alone": f"c{MODULE}\nrun\n".encode(),
    "GLOBAL and REDUCE": called(MODULE, "run"),
    "GLOBAL inside a container": b"}" + text("state_dict") + b"}" + text("w") + called(MODULE, "run") + b"ss",
    "GLOBAL that is discarded": called(MODULE, "run") + b"0}",
    "GLOBAL of a dotted name": b"ccollections\nOrderedDict.__class__\n)R",
    "GLOBAL of an empty name": b"c\n\n",
    "GLOBAL of a long name": b"c" + b"a" * 100_000 + b"\nrun\n",
    "STACK_GLOBAL": b"\x8c\x0e" + MODULE.encode() + b"\x8c\x03run\x93)R",
    "STACK_GLOBAL of memoized names": b"\x8c\x0e" + MODULE.encode() + b"\x940\x8c\x03run\x940h\x00h\x01\x93)R",
    "STACK_GLOBAL of a dotted name": b"\x8c\x08builtins\x8c\x0fint.from_bytes.x\x93",
    "STACK_GLOBAL of bytes": b"C\x02osC\x06system\x93)R",
    "STACK_GLOBAL of containers": b"]]\x93",
    "INST": f"(i{MODULE}\nrun\n".encode(),
    "OBJ": f"(c{MODULE}\nrun\no".encode(),
    "NEWOBJ": f"c{MODULE}\nrun\n)\x81".encode(),
    "NEWOBJ_EX": b"ccollections\nOrderedDict\n)}\x92",
    "NEWOBJ of a function": b"ctorch._utils\n_rebuild_tensor_v2\nN\x81",
    "NEWOBJ of a number": b"K\x01)\x81",
    "REDUCE of a text": text(f"{MODULE}.run") + b")R",
    "REDUCE of a stub's object": b"cnumpy\ndtype\n)R)R",
    "REDUCE of a dtype": b"ctorch\nfloat32\n)R",
    "REDUCE of a type of storages": b"ctorch\nFloatStorage\n)R",
    "REDUCE without a tuple": b"cnumpy\ndtype\n]R",
    "REDUCE of getattr": b"cbuiltins\ngetattr\n" + text("x") + text("__class__") + b"\x86R",
    "REDUCE of getattr on a class": b"cbuiltins\ngetattr\nccollections\nOrderedDict\n" + text("__init__") + b"\x86R",
    "REDUCE of a codec": b"c_codecs\nencode\n" + text("x") + text("rot13") + b"\x86R",
    "REDUCE that reserves memory": b"cbuiltins\nbytearray\n\x8a\x05" + (5 * 10**9).to_bytes(5, "little") + b"\x85R",
    "REDUCE of a long counter": b"ccollections\nCounter\n(" + b"]" * 3 + b"l\x85R",
    "BUILD of a class": b"ccollections\nOrderedDict\n}" + text("__reduce__") + b"Nsb",
    "BUILD of a list": b"]}b",
    "BUILD of a number": b"K\x01}b",
    "BUILD of a function": b"c_codecs\nencode\nN}" + text("__code__") + b"Ns\x86b",
    "EXT1": b"\x82\xf0",
    "EXT2": b"\x83\xf0\x00",
    "EXT4": b"\x84\xf0\x00\x00\x00",
    "PERSID": b"Pstorage\n",
    "BINPERSID of a text": text("storage") + b"Q",
    "BINPERSID of another kind": b"(" + text("module") + text(MODULE) + text("run") + text("x") + b"K\x01tQ",
    "BINPERSID of a function": b"(" + text("storage") + b"c_codecs\nencode\n" + text("0") + text("cpu") + b"K\x01tQ",
    "BINPERSID that is missing": b"ctorch._utils\n_rebuild_tensor_v2\n((" + text("storage") + b"ctorch\nFloatStorage\n"
    + text("9") + text("cpu") + b"K\x01tQK\x00))\x89NtR",
    "BINPERSID of a long tuple": b"(" + text("storage") + b"ctorch\nFloatStorage\n"
    + text("0") + text("cpu") + b"K\x01NNtQ",
    "BINPERSID of a list": b"](" + text("storage") + b"ctorch\nFloatStorage\n" + text("0") + text("cpu") + b"K\x01eQ",
    "a size of text": b"ctorch\nSize\n" + text("1" * 10) + b"\x85R",
    "a size of bytes": b"ctorch\nSize\nC\x02ab\x85R",
    "a size of many numbers": b"ctorch\nSize\n(" + b"K\x01" * 65 + b"t\x85R",
    "a set of text": b"cbuiltins\nset\n" + text("1" * 10) + b"\x85R",
    "a set of bytes, created": b"cbuiltins\nset\nC\x02ab\x85\x81",
    "a dictionary of a set": b"ccollections\nOrderedDict\n\x8f(K\x01K\x02\x86\x90\x85R",
    "NEXT_BUFFER": b"\x97",
    "READONLY_BUFFER": b"N\x98",
    "BYTEARRAY8": b"\x96" + struct.pack("<Q", 5 * 10**9),
    "BINBYTES8 without content": b"\x8e" + struct.pack("<Q", 5 * 10**9),
    "BINUNICODE8 without content": b"\x8d" + struct.pack("<Q", 5 * 10**9),
    "BINUNICODE of wrong bytes": b"X\x02\x00\x00\x00\xff\xfe",
    "BINSTRING of negative length": b"T\xff\xff\xff\xff",
    "UNICODE": b"Vtext\n",
    "STRING": b"S'text'\n",
    "INT": b"I" + b"9" * 10_000 + b"\n",
    "LONG": b"L" + b"9" * 10_000 + b"L\n",
    "LONG4": b"\x8b" + struct.pack("<i", 1 << 20) + b"\x01" * (1 << 20),
    "LONG4 of negative length": b"\x8b\xff\xff\xff\xff",
    "FLOAT": b"F1.0\n",
    "DUP": b"]2",
    "DICT": b"(d",
    "LIST": b"(l",
    "PUT": b"Np0\n",
    "GET": b"Np0\ng0\n",
    "BINGET of nothing": b"h\x07",
    "POP of nothing": b"0",
    "POP_MARK of nothing": b"1",
    "TUPLE of nothing": b"t",
    "SETITEM in a list": b"]K\x00K\x01s",
    "SETITEM in a stub": b"cnumpy\ndtype\n)RNNs",
    "SETITEMS of an odd number": b"}(Nu",
    "APPEND to a dictionary": b"}Na",
    "APPENDS to a tuple": b")(Ne",
    "ADDITEMS to a list": b"](N\x90",
    "FRAME without content": b"\x95" + struct.pack("<Q", 5 * 10**9) + b"N",
    "FRAME in a frame": b"\x95" + struct.pack("<Q", 30) + b"\x95" + struct.pack("<Q", 9) + b"N" * 9,
    "PROTO of the future": b"\x80\x63N",
    "unknown operation": b"\xffN",
    "list in itself": b"]q\x00h\x00a",
    "dictionary in itself": b"}q\x00" + text("a") + b"h\x00s",
    "deep lists": b"]" * 3_000 + b"a" * 2_999,
    "deep tuples": b"N" + b"\x85" * 3_000,
    "deep dictionaries": (b"}" + text("a")) * 1_500 + b"N" + b"s" * 1_500,
    "doubling lists": b"]q\x000" + b"](h\x00h\x00eq\x000" * 60 + b"h\x00",
    "doubling dictionaries": b"}q\x000" + b"}(K\x01h\x00K\x02h\x00uq\x000" * 60 + b"h\x00",
    "calls with long arguments": b"cnumpy\ndtype\nq\x000(" + b"N" * 10_000 + b"tq\x010" + b"h\x00h\x01R0" * 1_000,
    "long sizes": b"ctorch._utils\n_rebuild_tensor_v2\n(ctorch\nFloatStorage\nK\x00(" + b"K\x01" * 70 + b"t)\x89NtR",
    "numbers with the same hash": b"\x8f("
    + b"".join(b"\x8a\x0b" + (k * (2**61 - 1)).to_bytes(11, "little") for k in range(1, 2_000))
    + b"\x90",
    "tuples with the same hash": b"\x8f("
    + b"".join(b"(" + b"".join((b"J\xff\xff\xff\xff", b"J\xfe\xff\xff\xff")[k >> j & 1] for j in range(11)) + b"t"
               for k in range(2_000))
    + b"\x90",
}  # fmt: skip
LARGE = {  # for a budget that is a thousandth of the real one
    "lists": b"(" + b"]" * 1_000 + b"t",
    "dictionaries": b"(" + b"}" * 1_000 + b"t",
    "sets": b"(" + b"\x8f" * 1_000 + b"t",
    "marks": b"N" + b"(" * 2_000 + b"1" * 2_000,
    "memos": b"N" + b"\x94" * 2_000,
    "numbers": b"(" + b"K\x01" * 4_000 + b"t",
    "text": text("a" * 300_000),
    "conversions": text("a" * 50_000)
    + b"q\x000"
    + (b"c_codecs\nencode\nh\x00" + text("latin1") + b"\x86R0") * 5
    + b"N",
    "calls": b"cnumpy\ndtype\nq\x000" + b"h\x00)R0" * 1_500 + b"N",
    "storages": (b"(" + text("storage") + b"ctorch\nFloatStorage\n" + text("0") + text("cpu") + b"K\x01tQ0") * 300
    + b"N",
}
PICKLES = {**{name: called(*name.rsplit(".", 1), "x") for name in NAMES}, **OPERATIONS}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder on the import path with a module that leaves a trace, and an extension code that stands for it."""
    folder = tmp_path_factory.mktemp("hostile")
    sentinel = f"open({str(folder / 'sentinel')!r}, 'w').close()\n"
    (folder / f"{MODULE}.py").write_text(f"{sentinel}\ndef run(*_):\n    {sentinel}")
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(folder)
        copyreg.add_extension(MODULE, "run", 0xF0)
        read_all(folder, b"Vtext\n")  # imports what the readers need
        yield folder
        copyreg.remove_extension(MODULE, "run", 0xF0)


def read_all(folder: Path, content: bytes) -> list[str]:
    """The messages with which a pickle is refused in each kind of file."""
    path, messages = folder / "x.pth", []
    for protocol in (b"\x80\x02", b"\x80\x04"):
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("archive/data.pkl", protocol + content + b".")
        for reader in (read_pickle, read_state) if protocol == b"\x80\x02" else ():
            messages.append(message_of(reader, path))
        path.write_bytes(LEGACY_HEAD + protocol + content + b"." + pickle.dumps([], 2))
        messages.append(message_of(read_pickle, path))
    return messages


def message_of(reader, path: Path) -> str:
    with pytest.raises(CheckpointError) as caught:
        reader(path)
    assert caught.value.exit_code == 4
    return str(caught.value)


@pytest.mark.parametrize("name", PICKLES)
def test_malicious_pickles_are_bad_checkpoints(folder: Path, name: str):
    before = set(sys.modules)
    messages = read_all(folder, PICKLES[name])
    assert max(map(len, messages)) < 1_000
    assert set(sys.modules) == before
    assert not (folder / "sentinel").exists()
    assert name not in NAMES or name.split(".")[-1] in messages[0]


@pytest.mark.parametrize("name", LARGE)
def test_what_needs_too_much_memory_is_a_bad_checkpoint(folder: Path, name: str, monkeypatch: pytest.MonkeyPatch):
    before = set(sys.modules)
    path = folder / "x.pth"
    for head, tail in ((b"", b""), (LEGACY_HEAD, pickle.dumps([], 2))):
        path.write_bytes(head + b"\x80\x02" + LARGE[name] + b"." + tail)
        if not head:
            with zipfile.ZipFile(path, "w") as archive:
                archive.writestr("archive/data.pkl", b"\x80\x02" + LARGE[name] + b".")
        read_pickle(path)
        with monkeypatch.context() as patch:
            patch.setattr(torch_files, "Budget", lambda size, base: Budget(0, base // 1_000))
            with pytest.raises(pickle.UnpicklingError, match="far more memory"):
                torch_files.load(path)
            message_of(read_pickle, path)
    assert set(sys.modules) == before


def test_the_module_leaves_a_trace_when_it_is_imported(folder: Path):
    """The tests above would pass with a module that does nothing."""
    pickle.loads(b"\x80\x02" + OPERATIONS["GLOBAL and REDUCE"] + b".")  # noqa: TID251
    assert (folder / "sentinel").exists()
    (folder / "sentinel").unlink()
    del sys.modules[MODULE]
