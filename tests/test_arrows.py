"""Import rules: benchmarks, examples, tests -> runtimes -> quantization -> training -> cris_edge, never back."""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]

FOLDERS = ("cris_edge", "training", "quantization", "runtimes", "benchmarks", "examples", "tests")

# The folders of the project that a folder may import from.
ARROWS = {
    "cris_edge": {"cris_edge"},
    "training": {"training", "cris_edge"},
    "quantization": {"quantization", "training", "cris_edge"},
    "runtimes": {"runtimes", "quantization", "training", "cris_edge"},
    "benchmarks": {"benchmarks", "runtimes", "quantization", "training", "cris_edge"},
    "examples": {"cris_edge"},
    "tests": set(FOLDERS),
}

# The rooms of the SDK from top to bottom: a room may import from its own level and below.
ROOMS = (
    {"cli", "serve", "bulk", "__main__"},
    {"doctor", "media", "benchmark"},
    {"segmenter", "result"},
    {"backends", "bundle", "image", "tokenizer", "metrics"},
    {"device", "files", "errors"},
)

# Optional libraries, and the one file of the SDK that imports each, inside a function.
OPTIONAL = {
    "av": "cris_edge/media/clips.py",
    "PIL": "cris_edge/image/decoding.py",
    "onnxruntime": "cris_edge/backends/ort.py",
    "onnxruntime_qnn": "cris_edge/backends/qnn.py",
    "openvino": "cris_edge/backends/ov.py",
    "pillow_heif": "cris_edge/image/decoding.py",
    "rawpy": "cris_edge/image/decoding.py",
    "prometheus_client": "cris_edge/serve/monitoring.py",
    "python_multipart": "cris_edge/serve/app.py",
    "supervision": "cris_edge/result.py",
    "starlette": "cris_edge/serve/app.py",
    "uvicorn": "cris_edge/serve/server.py",
}
# Required libraries, and the rooms that may import them.
REQUIRED = {
    "click": "cris_edge/cli/",
    "cv2": "cris_edge/",
    "ftfy": "cris_edge/tokenizer.py",
    "numpy": "cris_edge/",
    "tokenizers": "cris_edge/tokenizer.py",
}
RUNTIMES = {"onnxruntime", "onnxruntime_qnn", "openvino"}

# Libraries that a folder may not import.
FOREIGN = {
    "training": RUNTIMES | {"onnx", "nncf"},
    "quantization": RUNTIMES | {"onnx"},
    "examples": RUNTIMES | {"torch", "onnx", "nncf"},
}


@dataclass(frozen=True)
class Import:
    """One module that a file imports."""

    where: str  # file:line, relative to the root
    file: str
    module: str  # absolute dotted name
    lazy: bool  # runs only when a function is called, or never (type checking)

    @property
    def top(self) -> str:
        return self.module.partition(".")[0]


class _Walker(ast.NodeVisitor):
    def __init__(self, file: str) -> None:
        self.file = file
        self.found: list[Import] = []
        self.depth = 0

    def _add(self, node: ast.AST, module: str) -> None:
        self.found.append(Import(f"{self.file}:{getattr(node, 'lineno', 0)}", self.file, module, self.depth > 0))

    def _deeper(self, nodes: list[ast.stmt]) -> None:
        self.depth += 1
        for node in nodes:
            self.visit(node)
        self.depth -= 1

    def visit_FunctionDef(self, node: ast.FunctionDef | ast.AsyncFunctionDef) -> None:
        self._deeper(node.body)

    visit_AsyncFunctionDef = visit_FunctionDef

    def visit_If(self, node: ast.If) -> None:
        if ast.unparse(node.test) in {"TYPE_CHECKING", "typing.TYPE_CHECKING"}:
            self._deeper(node.body)
            for other in node.orelse:
                self.visit(other)
        else:
            self.generic_visit(node)

    def visit_Import(self, node: ast.Import) -> None:
        for alias in node.names:
            self._add(node, alias.name)

    def visit_ImportFrom(self, node: ast.ImportFrom) -> None:
        package = list(Path(self.file).parts[:-1])
        base = package[: len(package) - node.level + 1] if node.level else []
        module = ".".join([*base, *([node.module] if node.module else [])])
        self._add(node, module)

    def visit_Call(self, node: ast.Call) -> None:
        name = ast.unparse(node.func).rpartition(".")[2]
        if name in {"import_module", "__import__"} and node.args:
            argument = node.args[0]
            module = argument.value if isinstance(argument, ast.Constant) else None
            if isinstance(module, str) and not module.startswith("."):
                self._add(node, module)
        self.generic_visit(node)


def walk(file: str, source: str) -> list[Import]:
    """Return every import of a file, including `importlib.import_module("name")`."""
    walker = _Walker(file)
    walker.visit(ast.parse(source, filename=file))
    return walker.found


def files(folder: str) -> Iterator[Path]:
    return (path for path in sorted((ROOT / folder).rglob("*.py")) if "__pycache__" not in path.parts)


def imports(folder: str) -> list[Import]:
    return [
        found
        for path in files(folder)
        for found in walk(path.relative_to(ROOT).as_posix(), path.read_text(encoding="utf-8"))
    ]


def public_names() -> set[str]:
    """Read `cris_edge.__all__` without importing the package."""
    tree = ast.parse((ROOT / "cris_edge" / "__init__.py").read_text(encoding="utf-8"))
    for node in tree.body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__":
            return set(ast.literal_eval(node.value))
    raise AssertionError("cris_edge/__init__.py has no literal __all__")


@pytest.mark.parametrize("folder", FOLDERS)
def test_folders_follow_the_arrows(folder: str) -> None:
    wrong = [
        f"{found.where} imports {found.module}"
        for found in imports(folder)
        if found.top in FOLDERS and found.top not in ARROWS[folder]
    ]
    assert not wrong


@pytest.mark.parametrize("folder", sorted(FOREIGN))
def test_folders_do_not_import_excluded_libraries(folder: str) -> None:
    wrong = [f"{found.where} imports {found.module}" for found in imports(folder) if found.top in FOREIGN[folder]]
    assert not wrong


def test_sdk_imports_only_listed_libraries() -> None:
    wrong = []
    for found in imports("cris_edge"):
        if found.top in sys.stdlib_module_names or found.top == "cris_edge":
            continue
        allowed = found.file.startswith(REQUIRED.get(found.top, "nowhere"))
        allowed |= found.file == OPTIONAL.get(found.top) and found.lazy
        if not allowed:
            wrong.append(f"{found.where} imports {found.module}" + ("" if found.lazy else " at the top of the module"))
    assert not wrong


def test_each_optional_library_is_imported_in_its_file() -> None:
    assert {found.top: found.file for found in imports("cris_edge") if found.top in OPTIONAL} == OPTIONAL


def room(module: str) -> str:
    """Return the room of a module of the SDK; a top-level module is its own room."""
    return module.split(".")[1]


def test_rooms_follow_the_arrows() -> None:
    level = {name: number for number, names in enumerate(ROOMS) for name in names}
    wrong = []
    for found in imports("cris_edge"):
        here = ".".join(Path(found.file).with_suffix("").parts)
        if found.top != "cris_edge" or found.module == "cris_edge" or here.endswith("cris_edge.__init__"):
            continue
        if level[room(found.module)] < level[room(here)]:
            wrong.append(f"{found.where} imports {found.module}")
    assert not wrong


def modules() -> dict[str, set[str]]:
    """Return every module of the packages with the modules that it imports, inside functions too."""
    paths = {
        ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path
        for folder in FOLDERS[:5]
        for path in files(folder)
    }
    graph: dict[str, set[str]] = {}
    for name, path in paths.items():
        tree = ast.parse(path.read_text(encoding="utf-8"))
        targets: set[str] = set()
        for node in ast.walk(tree):
            if isinstance(node, ast.Import):
                targets |= {alias.name for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module:
                # `from package import module` is an import of the module, any other name one of the package.
                targets |= {
                    full if (full := f"{node.module}.{alias.name}") in paths else node.module for alias in node.names
                }
        graph[name] = (targets & set(paths)) - {name}
    return graph


def circles(graph: dict[str, set[str]]) -> list[set[str]]:
    """Return the strongly connected components of more than one module (Tarjan, 1972)."""
    order: dict[str, int] = {}
    low: dict[str, int] = {}
    stack: list[str] = []
    found: list[set[str]] = []

    def visit(name: str) -> None:
        order[name] = low[name] = len(order)
        stack.append(name)
        for target in sorted(graph[name]):
            if target not in order:
                visit(target)
                low[name] = min(low[name], low[target])
            elif target in stack:
                low[name] = min(low[name], order[target])
        if low[name] == order[name]:
            component = set(stack[stack.index(name) :])
            del stack[stack.index(name) :]
            if len(component) > 1:
                found.append(component)

    for name in sorted(graph):
        if name not in order:
            visit(name)
    return found


def test_there_are_no_circular_imports() -> None:
    assert circles(modules()) == []


def test_circular_imports_are_found() -> None:
    graph = {"a": {"b"}, "b": {"c"}, "c": {"a", "d"}, "d": {"e"}, "e": {"d"}, "f": {"a"}}
    assert sorted(map(sorted, circles(graph))) == [["a", "b", "c"], ["d", "e"]]


def test_examples_use_only_public_names() -> None:
    public = public_names()
    wrong = []
    for path in files("examples"):
        file = path.relative_to(ROOT).as_posix()
        tree = ast.parse(path.read_text(encoding="utf-8"), filename=file)
        for node in ast.walk(tree):
            names: list[str] = []
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names if alias.name.startswith("cris_edge.")]
            elif isinstance(node, ast.ImportFrom) and (node.module or "").partition(".")[0] == "cris_edge":
                inner = (node.module or "").partition(".")[2]
                names = [inner] if inner else [alias.name for alias in node.names if alias.name not in public]
            elif isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "cris_edge":
                names = [node.attr] if node.attr not in public else []
            wrong += [f"{file}:{getattr(node, 'lineno', 0)} uses {name}" for name in names]
    assert not wrong


def test_module_names_are_unique() -> None:
    names: dict[str, list[str]] = {}
    for folder in FOLDERS[:5]:
        for path in files(folder):
            file = path.relative_to(ROOT).as_posix()
            if not path.stem.startswith("__") and not file.startswith("cris_edge/cli/"):
                names.setdefault(path.stem, []).append(file)
    assert {name: places for name, places in names.items() if len(places) > 1} == {}


def test_file_names_never_shadow_a_library() -> None:
    libraries = RUNTIMES | {"torch", "onnx", "nncf", "tqdm", "matplotlib", "skimage", "PIL", *REQUIRED}
    shadows = [path for folder in FOLDERS for path in files(folder) if path.stem in libraries]
    # A script puts its own folder before the standard library on the path.
    shadows += [path for path in files("examples") if path.stem in sys.stdlib_module_names]
    assert not [path.relative_to(ROOT).as_posix() for path in shadows]


def test_the_walker_finds_every_import() -> None:
    source = """
import os, openvino as ov
from typing import TYPE_CHECKING
if TYPE_CHECKING:
    import torch
from ..errors import InputError
from . import base
def compile():
    import onnxruntime
    importlib.import_module("nncf.torch")
class A:
    import onnx
"""
    found = {(one.module, one.lazy) for one in walk("cris_edge/backends/ov.py", source)}
    assert found == {
        ("os", False),
        ("openvino", False),
        ("typing", False),
        ("torch", True),
        ("cris_edge.errors", False),
        ("cris_edge.backends", False),
        ("onnxruntime", True),
        ("nncf.torch", True),
        ("onnx", False),
    }
