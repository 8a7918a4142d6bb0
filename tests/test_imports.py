"""`import cris_edge` is light, and its public names are an explicit list."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

# Change a public name here and in the changelog.
PUBLIC = [
    "Segmentation",
    "Segmenter",
    "__version__",
    "open_source",
]

# Libraries that `import cris_edge` must not load: training, runtimes, and slow imports.
HEAVY = ["torch", "onnxruntime", "openvino", "nncf", "onnx", "cv2", "tokenizers", "ftfy", "click", "PIL", "matplotlib"]


def run(code: str, cwd: Path) -> str:
    """Run code in a fresh interpreter and return what it printed."""
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code],
        cwd=cwd,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def loaded(code: str, cwd: Path) -> set[str]:
    """Return the top-level modules loaded in a fresh interpreter after running `code`."""
    printed = run(
        f"{code}\nimport json, sys\nprint(json.dumps(sorted({{m.partition('.')[0] for m in sys.modules}})))", cwd
    )
    return set(json.loads(printed.splitlines()[-1]))


def test_import_is_light(root: Path) -> None:
    assert not loaded("import cris_edge", root).intersection(HEAVY)


def test_import_prints_nothing(root: Path) -> None:
    assert run("import cris_edge", root) == ""


def test_public_names_resolve_without_training_or_a_runtime(root: Path) -> None:
    code = "import cris_edge\nfor name in cris_edge.__all__: getattr(cris_edge, name)"
    assert not loaded(code, root).intersection(
        {"torch", "onnxruntime", "openvino", "nncf", "onnx", "matplotlib", "click"}
    )


def test_command_line_help_needs_no_runtime(root: Path) -> None:
    modules = loaded(
        "import sys\nfrom cris_edge.cli import main\nsys.argv = ['cris-edge', '--help']\n"
        "try: main()\nexcept SystemExit as stop: assert not stop.code",
        root,
    )
    assert not modules.intersection({"torch", "onnxruntime", "openvino", "cv2", "tokenizers"})


def test_public_names_are_the_list() -> None:
    import cris_edge

    assert sorted(cris_edge.__all__) == sorted(PUBLIC)
    assert sorted(set(dir(cris_edge)).intersection(PUBLIC)) == sorted(PUBLIC)


def test_an_unknown_name_is_an_attribute_error() -> None:
    import cris_edge

    with pytest.raises(AttributeError, match="no_such_name"):
        _ = cris_edge.no_such_name


def test_version_equals_that_of_the_wheel(root: Path) -> None:
    import cris_edge

    declared = re.search(r'^version = "(.+)"$', (root / "pyproject.toml").read_text(encoding="utf-8"), re.MULTILINE)
    assert declared is not None
    assert cris_edge.__version__ == declared[1]
