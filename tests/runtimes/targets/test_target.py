"""A target is one file: a toy target defined in this test passes the whole export."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click
import cv2
import numpy as np
import onnx
import pytest
import torch
from click.testing import CliRunner
from onnx import numpy_helper
from onnx.reference import ReferenceEvaluator

from cris_edge.bundle import Bundle
from cris_edge.bundle.manifest import GRAPHS
from cris_edge.errors import ExportError, OptionError, RuntimeMissingError
from runtimes import export as export_module
from runtimes import onnx_graph
from runtimes.export import Options, default_runtimes, export, main
from runtimes.network import Array, Network, Tensors
from runtimes.targets.target import Job, Lowered, Target, known_targets, register, unregister
from training.checkpoint import save_model
from training.model import CRIS, Architecture


class NpzTarget(Target):
    """Weights and nodes in an ``.npz``, run by the NumPy interpreter of the onnx package."""

    name = "npz"
    distribution = "numpy"
    precisions = ("float32",)
    options = (click.Option(["--npz-scale"], type=float, default=1.0, help="Factor on kernels."),)

    def __init__(self, settings: Mapping[str, Any]) -> None:
        super().__init__(settings)
        self.scale = np.float32(settings.get("npz_scale", 1.0))

    def lower(self, name: str, job: Job) -> Lowered:
        graph = onnx.ModelProto()
        graph.CopyFrom(job.trace(name, "onnxruntime"))
        arrays = {f"w/{tensor.name}": numpy_helper.to_array(tensor) for tensor in graph.graph.initializer}
        arrays |= {key: self.scale * array for key, array in arrays.items() if array.ndim == 4}
        spec = onnx_graph.spec(graph)
        del graph.graph.initializer[:]
        path = job.folder / self.name / f"{name}.npz"
        path.parent.mkdir(exist_ok=True)
        np.savez(path, nodes=np.frombuffer(graph.SerializeToString(), np.uint8), **arrays)
        return Lowered(path, spec)

    @contextmanager
    def running(self, job: Job, precision: str | None) -> Iterator[tuple[Network, str]]:
        yield Network({name: Interpreted(lowered.path) for name, lowered in self.lowered.items()}), "float32"

    def record(self, job: Job) -> dict[str, Any]:
        return {"scale": float(self.scale)}


class Interpreted:
    def __init__(self, path: Path) -> None:
        with np.load(path) as file:
            graph = onnx.load_from_string(file["nodes"].tobytes())
            graph.graph.initializer.extend(
                numpy_helper.from_array(file[key], key.removeprefix("w/")) for key in file.files if key != "nodes"
            )
        self._evaluator = ReferenceEvaluator(graph)

    def __call__(self, inputs: Mapping[str, Array]) -> Tensors:
        found = self._evaluator.run(None, {name: inputs[name] for name in self._evaluator.input_names})
        return dict(zip(self._evaluator.output_names, found, strict=True))


@pytest.fixture(autouse=True)
def npz() -> Iterator[None]:
    register(NpzTarget)
    yield
    unregister("npz")


@pytest.fixture
def checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(export_module, "free_photos", dict)  # the interpreter takes its time
    torch.manual_seed(0)
    sizes: dict[str, Any] = {"vision_layers": (1, 1, 1, 1), "vision_width": 8, "embed_dim": 16, "text_width": 16}
    sizes |= {"text_layers": 1, "decoder_layers": 1, "decoder_heads": 2, "ffn_dim": 16}
    path = tmp_path / "model.pth"
    save_model(path, CRIS(Architecture(input_size=32, image_resolution=32, **sizes)), recipe="random weights")
    return path


def test_a_registered_target_is_exported_checked_scored_and_recorded(tmp_path: Path, checkpoint: Path) -> None:
    image = np.random.default_rng(0).integers(0, 255, (24, 40, 3), dtype=np.uint8)
    mask = np.zeros((24, 40), np.uint8)
    mask[4:20, 8:30] = 255
    cv2.imwrite(str(tmp_path / "image.png"), image)
    cv2.imwrite(str(tmp_path / "mask.png"), mask)
    sample = {"image": "image.png", "sentences": ["the box", "the noise"], "mask": "mask.png"}
    (tmp_path / "data.jsonl").write_text(json.dumps(sample) + "\n")
    options = Options(runtimes=("npz",), data=str(tmp_path / "data.jsonl"))
    bundle = Bundle.open(export(checkpoint, tmp_path / "bundle", options), thorough=True)
    manifest = bundle.manifest
    assert manifest.runtimes == {"npz": {name: f"npz/{name}.npz" for name in GRAPHS}}
    rows = [row for row in manifest.parity if row["runtime"] == "npz"]
    assert [row["graph"] for row in rows] == [*GRAPHS, "chain"]
    assert all(0 <= row["max_abs_diff"] <= row["tolerance"] for row in rows)
    assert [row["runtime"] for row in manifest.metrics] == ["pytorch", "npz"]
    assert manifest.metrics[1]["mIoU"] == pytest.approx(manifest.metrics[0]["mIoU"], abs=0.5)
    assert manifest.provenance["versions"]["numpy"] == np.__version__


def test_its_own_option_is_on_the_command_line_and_its_wrong_graphs_stop_the_export(
    tmp_path: Path, checkpoint: Path
) -> None:
    arguments = ["--checkpoint", str(checkpoint), "--output", str(tmp_path / "bundle"), "--runtimes", "npz"]
    assert "--npz-scale" in CliRunner().invoke(main, ["--help"]).stdout
    result = CliRunner().invoke(main, [*arguments, "--npz-scale", "1.1"])
    assert result.exit_code == 1 and "npz runs in float32" in result.stderr
    assert not (tmp_path / "bundle").exists()


def test_options_of_targets_that_were_not_chosen_are_refused() -> None:
    with pytest.raises(OptionError, match=r"--npz-scale 2\.0 was given, but none of the runtimes \(onnxruntime\)"):
        Options(runtimes=("onnxruntime",), settings={"npz_scale": 2.0})


def test_a_precision_that_the_target_does_not_take_is_refused() -> None:
    with pytest.raises(OptionError, match="npz does not take float16"):
        Options(runtimes=("npz",), precision="fp16")


def test_what_a_target_needs_is_named_when_it_is_absent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(NpzTarget, "distribution", "no-such-distribution")
    with pytest.raises(RuntimeMissingError, match="pip install no-such-distribution"):
        export(tmp_path / "model.pth", tmp_path / "bundle", Options(runtimes=("npz",)))


def test_targets_are_found_by_their_files() -> None:
    assert set(known_targets()) == {"npz", "onnxruntime", "openvino", "qnn"}
    assert default_runtimes() == ("onnxruntime", "openvino")


def test_export_names_no_target() -> None:
    source = Path(export_module.__file__).read_text(encoding="utf-8")
    for name, target in known_targets().items():
        if name != "npz":  # whose distribution is NumPy
            words = {name, target.distribution, target.__name__, *(str(option.name) for option in target.options)}
            assert not {word for word in words if word in source}


def test_an_error_of_a_target_is_an_export_error(checkpoint: Path, tmp_path: Path, monkeypatch) -> None:
    def fail(target: Target, name: str, job: Job) -> Lowered:
        raise ExportError("disk full")

    monkeypatch.setattr(NpzTarget, "lower", fail)
    with pytest.raises(ExportError, match="disk full"):
        export(checkpoint, tmp_path / "bundle", Options(runtimes=("npz",)))
    assert not (tmp_path / "bundle").exists()
