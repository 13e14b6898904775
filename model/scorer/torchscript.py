"""Exported modules from the bytes of their archives. Archives of the same code share what was compiled of it.

`torch.jit.load` compiles an archive's code, which holds the interpreter's lock for tens of milliseconds, and
TorchScript optimises a module at its second run, for a tenth of a second more. A service would do both for every new
version while it answers requests. But a new version of a model mostly has the code of the one before and other numbers:
`ScriptLoader` compiles a code once, and gives each further archive of it a copy of the first module, filled with its
own attributes.
"""

import copy
import hashlib
import io
import pickle
import warnings
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

# Number of codes that are remembered. Each keeps a module without its tables in memory.
_MOST_CODES = 4
_OBJECTS = "__torch__."
_DTYPES = {
    "BoolStorage": torch.bool,
    "ByteStorage": torch.uint8,
    "IntStorage": torch.int32,
    "LongStorage": torch.int64,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "FloatStorage": torch.float32,
    "DoubleStorage": torch.float64,
}
_LISTS = ("build_intlist", "build_doublelist", "build_boollist", "build_tensorlist", "restore_type_tag")

Load = Callable[[bytes], torch.jit.ScriptModule]


def load_script(content: bytes) -> torch.jit.ScriptModule:
    """The module of an archive, compiled. Raises RuntimeError and ValueError where it is none."""
    with warnings.catch_warnings():
        # torch.jit is deprecated without a successor that loads without a compiler. docs/decisions says more.
        warnings.filterwarnings("ignore", category=DeprecationWarning, module="torch")
        warnings.filterwarnings("ignore", message=".*torch.jit.*")
        module: torch.jit.ScriptModule = torch.jit.load(  # type: ignore[no-untyped-call]
            io.BytesIO(content), map_location="cpu"
        )
    return module


class ScriptLoader:
    """`load_script`, but for codes that it has seen before. For one thread."""

    def __init__(self, load: Load = load_script) -> None:
        self._load = load
        self._known: OrderedDict[str, torch.jit.ScriptModule] = OrderedDict()

    def __call__(self, content: bytes) -> torch.jit.ScriptModule:
        """The module of an archive. Raises as `load_script` does."""
        try:
            with zipfile.ZipFile(io.BytesIO(content)) as archive:
                root = archive.namelist()[0].partition("/")[0]
                code = _code(archive, root)
                state = _Attributes(archive, root).load()
        except Exception:  # a fault, or what is only unknown here, is torch's to report
            return self._load(content)
        if code not in self._known:
            self._known[code] = self._load(content)
            if len(self._known) > _MOST_CODES:
                self._known.popitem(last=False)
        self._known.move_to_end(code)
        module = copy.deepcopy(self._known[code])
        try:
            _set_tensors(module, state)
        except (RuntimeError, TypeError, AttributeError):  # an attribute of a kind that only torch's own reader sets
            return self._load(content)
        return module


class _Object:
    """An object of the archive, a module: its attributes by name."""


def _code(archive: zipfile.ZipFile, root: str) -> str:
    """Code of an archive, the same in two that differ by attributes alone."""
    digest = hashlib.sha256()
    for name in sorted(archive.namelist()):
        place = name.removeprefix(f"{root}/")
        if place != "data.pkl" and not place.startswith(("data/", ".data/")):
            content = archive.read(name)
            digest.update(f"{place} {len(content)}\n".encode())
            digest.update(content)
    return digest.hexdigest()


class _Attributes(pickle.Unpickler):
    """The attributes of an archive's modules. Nothing but what torch writes of them is read, and none of it is called
    that comes from the archive."""

    def __init__(self, archive: zipfile.ZipFile, root: str) -> None:
        super().__init__(io.BytesIO(archive.read(f"{root}/data.pkl")))
        self._archive = archive
        self._root = root

    def find_class(self, module: str, name: str) -> Any:
        if module.startswith(_OBJECTS):
            return _Object
        if module == "torch" and name in _DTYPES:
            return _DTYPES[name]
        if module == "torch.jit._pickle" and name in _LISTS:
            return _value
        if (module, name) == ("torch._utils", "_rebuild_tensor_v2"):
            return _tensor
        if (module, name) == ("collections", "OrderedDict"):
            return OrderedDict
        raise pickle.UnpicklingError(f"{module}.{name} is nothing that a module holds")

    def persistent_load(self, identifier: tuple[str, torch.dtype, str, str, int]) -> Tensor:
        _, dtype, key, _, count = identifier
        if not count:
            return torch.empty(0, dtype=dtype)
        return torch.frombuffer(bytearray(self._archive.read(f"{self._root}/data/{key}")), dtype=dtype)


def _value(value: object, *_: str) -> object:
    """A list or a mapping without the name of its type, which the module knows."""
    return value


def _tensor(
    storage: Tensor, offset: int, size: tuple[int, ...], stride: tuple[int, ...], requires_grad: bool, *_: object
) -> Tensor:
    return storage.as_strided(size, stride, offset).requires_grad_(requires_grad)


def _set_tensors(module: torch.jit.ScriptModule, state: _Object) -> None:
    for name, value in vars(state).items():
        if isinstance(value, _Object):
            _set_tensors(getattr(module, name), value)
        else:
            setattr(module, name, value)
