"""Archives of a code that is known: the module that torch itself would load, without its being compiled again."""

import io
import pickle
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from model.artifact.artifact import RANKER
from model.export.scoring_module import to_torchscript, write_torchscript
from model.scorer.torchscript import ScriptLoader, load_script
from tests.artifacts import TINY_NETWORK, publish_artifact


class Kept(torch.nn.Module):
    """Attributes of every kind that a module may hold, which are all read."""

    numbers: list[int]
    name: str
    maybe: float | None
    offset: Tensor

    def __init__(self, numbers: list[int], name: str, maybe: float | None, weight: Tensor) -> None:
        super().__init__()
        self.numbers = numbers
        self.name = name
        self.maybe = maybe
        self.pair = (len(numbers), name)
        self.layers = torch.nn.ModuleList([torch.nn.Linear(2, 2) for _ in range(2)])
        self.weight = torch.nn.Parameter(weight)
        self.register_buffer("offset", weight.sum(dim=0))

    def forward(self, x: Tensor) -> tuple[Tensor, list[int], str, float | None, tuple[int, str]]:
        for layer in self.layers:
            x = layer(x)
        return x @ self.weight + self.offset, self.numbers, self.name, self.maybe, self.pair


def saved(module: torch.nn.Module, path: Path) -> bytes:
    write_torchscript(to_torchscript(module), path)
    return path.read_bytes()


class Counting:
    def __init__(self) -> None:
        self.loads = 0

    def __call__(self, content: bytes) -> torch.jit.ScriptModule:
        self.loads += 1
        return load_script(content)


def same(one: torch.jit.ScriptModule, other: torch.jit.ScriptModule) -> bool:
    left, right = one.state_dict(), other.state_dict()
    return left.keys() == right.keys() and all(torch.equal(left[name], right[name]) for name in left)


def test_modules_of_one_code_are_their_own_and_compiled_once(tmp_path: Path) -> None:
    load = Counting()
    loader = ScriptLoader(load)
    contents = [(publish_artifact(tmp_path, seed=seed) / RANKER).read_bytes() for seed in range(3)]
    modules = [loader(content) for content in contents]
    assert load.loads == 1
    for module, content in zip(modules, contents, strict=True):
        assert same(module, load_script(content))
    assert not same(modules[0], modules[1])
    with torch.no_grad():
        for parameter in modules[0].parameters():
            parameter.zero_()
    assert same(modules[1], load_script(contents[1]))
    assert same(loader(contents[0]), load_script(contents[0]))


def test_whatever_a_module_holds_is_that_of_its_archive(tmp_path: Path) -> None:
    load = Counting()
    loader = ScriptLoader(load)
    x = torch.randn(3, 2)
    given: list[tuple[Any, ...]] = [
        ([1, 2], "first", 0.5, torch.randn(2, 2)),
        ([3], "", None, torch.randn(2, 5)),  # of another shape, too
        ([], "third", -1.0, torch.randn(5, 2).T),  # not contiguous
    ]
    for numbers, name, maybe, weight in given:
        module = Kept(numbers, name, maybe, weight)
        found = loader(saved(module, tmp_path / "module.pt"))
        assert found.training == module.training
        answer, *rest = found(x)
        torch.testing.assert_close(answer, module(x)[0])
        assert rest == [numbers, name, maybe, (len(numbers), name)]
    assert load.loads == 1


def test_another_code_is_compiled_and_the_least_used_is_forgotten(tmp_path: Path) -> None:
    load = Counting()
    loader = ScriptLoader(load)
    networks = [{**TINY_NETWORK, "tower": [8] * depth} for depth in range(1, 6)]
    contents = [
        (publish_artifact(tmp_path / str(number), network=network) / RANKER).read_bytes()
        for number, network in enumerate(networks)
    ]
    for content in contents:
        assert same(loader(content), load_script(content))
    assert load.loads == 5
    loader(contents[-1])
    assert load.loads == 5
    loader(contents[0])
    assert load.loads == 6


class Call:
    """A pickle that runs something."""

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return exec, ("raise SystemExit",)


def test_nothing_that_an_archive_names_is_run(tmp_path: Path) -> None:
    content = (publish_artifact(tmp_path) / RANKER).read_bytes()
    changed = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(content)) as archive, zipfile.ZipFile(changed, "w") as other:
        for name in archive.namelist():
            is_data = name.endswith("/data.pkl")
            other.writestr(name, pickle.dumps(Call(), 2) if is_data else archive.read(name))
    with pytest.raises(RuntimeError):
        ScriptLoader()(changed.getvalue())


@pytest.mark.parametrize("content", [b"", b"not an archive", b"PK\x05\x06" + bytes(18)])
def test_what_is_no_archive_is_refused_as_torch_refuses_it(content: bytes) -> None:
    with pytest.raises(RuntimeError):
        ScriptLoader()(content)
