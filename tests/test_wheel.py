"""The wheel has one top-level name, everything an app needs, nothing from the workbench, and at most 25 MB."""

from __future__ import annotations

import configparser
import os
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest

LIMIT = 25_000_000  # bytes
MANIFEST = "cris_edge/models/default/manifest.json"


@pytest.fixture(scope="module")
def wheel(root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build a wheel offline, from a copy: a build in the checkout leaves files that the next build picks up."""
    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "source"
    # The workbench is copied too, so that a build that packs it by mistake is noticed.
    for name in ("cris_edge", "training", "quantization", "runtimes", "benchmarks", "examples", "tests"):
        if (root / name).is_dir():
            shutil.copytree(root / name, source / name, ignore=shutil.ignore_patterns("__pycache__", "results"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy2(root / name, source / name)
    command = [sys.executable, "-m", "pip", "wheel", "--no-build-isolation", "--no-deps", "--no-index"]
    done = subprocess.run(
        [*command, "--disable-pip-version-check", "--wheel-dir", str(folder), str(source)],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    (built,) = folder.glob("*.whl")
    return built


@pytest.fixture(scope="module")
def names(wheel: Path) -> Iterator[set[str]]:
    with zipfile.ZipFile(wheel) as archive:
        yield {name for name in archive.namelist() if not name.endswith("/")}


@pytest.fixture(scope="module")
def site(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The contents of the wheel, in a folder outside the checkout."""
    folder = tmp_path_factory.mktemp("site")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder)
    return folder


def test_one_top_level_name(names: set[str]) -> None:
    tops = {name.partition("/")[0] for name in names}
    assert {top for top in tops if not top.endswith(".dist-info")} == {"cris_edge"}
    assert len(tops) == 2


def test_wheel_has_every_module_and_data_file_of_the_package(root: Path, names: set[str]) -> None:
    package = root / "cris_edge"
    there = {
        path.relative_to(root).as_posix()
        for path in package.rglob("*")
        if path.is_file() and "__pycache__" not in path.parts and not path.name.startswith(".")
    }
    assert "cris_edge/py.typed" in there
    assert there - names == set()


def test_wheel_has_the_default_model(root: Path, names: set[str]) -> None:
    if not (root / MANIFEST).is_file():
        pytest.skip(f"this checkout has no default model: no {MANIFEST}")
    assert MANIFEST in names
    assert any(name.endswith(".onnx") and name.startswith("cris_edge/models/default/") for name in names)


def test_size(wheel: Path) -> None:
    assert wheel.stat().st_size <= LIMIT


def test_wheel_is_for_every_platform(wheel: Path) -> None:
    assert wheel.name.endswith("-py3-none-any.whl")


def test_entry_point_and_licence(site: Path) -> None:
    (info,) = site.glob("*.dist-info")
    entry_points = configparser.ConfigParser()
    entry_points.read(info / "entry_points.txt", encoding="utf-8")
    assert dict(entry_points["console_scripts"]) == {"cris-edge": "cris_edge.cli:main"}
    assert (info / "licenses" / "LICENSE").is_file()


def test_runtime_extras_do_not_install_torch(site: Path) -> None:
    (info,) = site.glob("*.dist-info")
    lines = (info / "METADATA").read_text(encoding="utf-8").splitlines()
    required = [line.removeprefix("Requires-Dist: ") for line in lines if line.startswith("Requires-Dist: ")]
    installed = [line for line in required if "extra ==" not in line]
    installed += [
        line for line in required for extra in ("onnxruntime", "openvino", "qnn") if f'extra == "{extra}"' in line
    ]
    packages = {line.split(";")[0].split("[")[0].split(">")[0].split("=")[0].strip() for line in installed}
    assert packages == {
        "click",
        "cris-edge",  # the extra qnn includes the extra onnxruntime
        "ftfy",
        "numpy",
        "onnxruntime",
        "onnxruntime-qnn",
        "opencv-python-headless",
        "openvino",
        "tokenizers",
    }


def test_wheel_runs_outside_the_checkout(root: Path, site: Path, tmp_path: Path) -> None:
    if not (root / MANIFEST).is_file():
        pytest.skip(f"this checkout has no default model: no {MANIFEST}")
    code = (
        "import sys, cris_edge, cris_edge.cli as cli; assert cris_edge.__file__.startswith(sys.argv.pop(1)); cli.main()"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(site), "info", "--json"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(site)},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert '"format": 2' in done.stdout
