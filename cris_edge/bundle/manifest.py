"""The manifest of a bundle: `manifest.json`, typed and checked.

Format 2 adds ``presence``, and spells precisions ``float32`` and ``float16`` where format 1 has ``fp32`` and ``fp16``.
Unknown keys are ignored, so that a later writer may add some; an unknown ``format`` is refused. Every version reads all
formats up to its own.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, fields
from typing import Any

from cris_edge.errors import BundleError

FORMAT = 2
GRAPHS = ("image_encoder", "text_encoder", "mask_decoder")
PRECISIONS = ("float32", "float16", "int8")
_SHORT = {"fp32": "float32", "fp16": "float16"}
PRESENCE_SOURCES = ("head", "calibration")
STATISTICS = ("peak", "top", "mean", "inside", "area", "certain")
"""Statistics of the logits that a calibration has a coefficient for: see `cris_edge.bundle.presence`."""
DTYPES = ("float32", "float16", "int64", "int32", "int8", "uint8", "bool")


@dataclass(frozen=True)
class TensorSpec:
    """One input or output of a graph; `shape` is static."""

    name: str
    shape: tuple[int, ...]
    dtype: str

    def __str__(self) -> str:
        return f"{self.name} {self.dtype}{list(self.shape)}"


@dataclass(frozen=True)
class GraphSpec:
    """The tensors of one graph; `macs` counts its multiply-accumulates, where they were counted."""

    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    macs: int | None = None


@dataclass(frozen=True)
class FileRecord:
    """A file when the bundle was written; `sha256` in lower-case hexadecimal, `size` in bytes."""

    sha256: str
    size: int


@dataclass(frozen=True)
class PresenceSpec:
    """How a bundle tells whether a prompt's object is in the image.

    Attributes:
        source: "head": the mask decoder's output ``presence``, before the sigmoid; "calibration": a logistic regression
            over statistics of the logits (`cris_edge.bundle.presence`).
        min_presence: Default in [0, 1]; below it nothing matches.
        coefficients: Of the calibration.
        metrics: Measured in percent: AUROC, N-acc, T-acc at `min_presence`; dataset, split, numbers of prompts.
    """

    source: str
    min_presence: float
    coefficients: Mapping[str, float] = field(default_factory=dict)
    metrics: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Manifest:
    """The content of a manifest.

    Attributes:
        name: Short name of the model.
        input_size: S, the side of the square that the image encoder takes, in pixels.
        word_len: L, the tokens of a sentence, padding included.
        mean: Per channel (R, G, B), of RGB scaled to [0, 1]; subtracted.
        std: The same; divided by.
        threshold: Default for probabilities, in [0, 1].
        precision: Of the weights as stored: "float32", "float16" or "int8".
        graphs: The tensors of each of the three graphs.
        runtimes: Per runtime, the file of each graph, relative to the bundle.
        files: Every file of the bundle but the manifest.
        golden: File with inputs and the logits that PyTorch gave for them, or None.
        golden_prompts: The prompts of the golden tokens.
        parity: Measured at export: runtime, graph, precision, max_abs_diff, tolerance, mask_iou.
        metrics: Measured accuracy in percent: dataset, split, samples, runtime, precision, mIoU, oIoU, Pr@50 … Pr@90.
        presence: How presence is computed, or None.
        provenance: Recipe, checkpoint and versions behind the weights.
        architecture: Informative.
        description: What the model knows and what it does not.
        format: Version of this format.
    """

    name: str
    input_size: int
    word_len: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    threshold: float
    precision: str
    graphs: Mapping[str, GraphSpec]
    runtimes: Mapping[str, Mapping[str, str]]
    files: Mapping[str, FileRecord]
    golden: str | None = None
    golden_prompts: tuple[str, ...] = ()
    parity: tuple[Mapping[str, Any], ...] = ()
    metrics: tuple[Mapping[str, Any], ...] = ()
    presence: PresenceSpec | None = None
    provenance: Mapping[str, Any] = field(default_factory=dict)
    architecture: Mapping[str, Any] = field(default_factory=dict)
    description: str = ""
    format: int = FORMAT

    @classmethod
    def from_dict(cls, data: object) -> Manifest:
        """Build a manifest from a parsed ``manifest.json``.

        Raises:
            BundleError: The format is unknown, or an entry is missing, of the wrong type, or contradicts another.
        """
        root = _Reader(data, "")
        version = root.get("format", int)
        if not 1 <= version <= FORMAT:
            raise BundleError(
                f"The manifest is of format {version}, and this version of cris-edge reads formats 1 to {FORMAT}; "
                f"install a newer cris-edge, or export the bundle again."
            )
        manifest = cls(
            format=version,
            name=root.get("name", str),
            description=root.get("description", str, ""),
            architecture=root.get("architecture", dict, {}),
            input_size=root.get("input_size", int),
            word_len=root.get("word_len", int),
            mean=_triple(root, "mean"),
            std=_triple(root, "std"),
            threshold=root.get("threshold", float),
            precision=long_precision(root.get("precision", str)),
            graphs={name: _graph(root.child("graphs").child(name)) for name in GRAPHS},
            runtimes={runtime: _strings(root.child("runtimes").child(runtime)) for runtime in root.child("runtimes")},
            files={path: _file(root.child("files").child(path)) for path in root.child("files")},
            golden=root.get("golden", str, None),
            golden_prompts=tuple(root.entries("golden_prompts", str)),
            parity=tuple(root.entries("parity", dict)),
            metrics=tuple(root.entries("metrics", dict)),
            presence=None if root.get("presence", dict, None) is None else _presence(root.child("presence")),
            provenance=root.get("provenance", dict, {}),
        )
        manifest.check()
        return manifest

    def to_dict(self) -> dict[str, Any]:
        """Return plain dicts and lists for JSON."""
        plain = {entry.name: getattr(self, entry.name) for entry in fields(self)}
        plain["graphs"] = {
            name: {
                "inputs": [_plain_tensor(tensor) for tensor in graph.inputs],
                "outputs": [_plain_tensor(tensor) for tensor in graph.outputs],
                "macs": graph.macs,
            }
            for name, graph in self.graphs.items()
        }
        plain["runtimes"] = {runtime: dict(files) for runtime, files in self.runtimes.items()}
        plain["files"] = {path: {"sha256": file.sha256, "size": file.size} for path, file in self.files.items()}
        for name in ("mean", "std", "golden_prompts", "parity", "metrics"):
            plain[name] = list(plain[name])
        if self.presence is not None:
            plain["presence"] = {key: value for key, value in vars(self.presence).items() if value != {}}
        return {"format": plain.pop("format"), **plain}

    def check(self) -> None:
        """Raise `BundleError` where entries contradict each other."""
        if self.input_size < 32 or self.input_size % 32:
            raise BundleError(f"The manifest's input_size is {self.input_size}; expected a positive multiple of 32.")
        if self.word_len < 3:
            raise BundleError(f"The manifest's word_len is {self.word_len}; expected at least 3 (start, a word, end).")
        if not 0 <= self.threshold <= 1:
            raise BundleError(f"The manifest's threshold is {self.threshold}; expected a probability in [0, 1].")
        if not all(value > 0 for value in self.std):
            raise BundleError(f"The manifest's std is {list(self.std)}; expected three positive numbers.")
        if self.precision not in PRECISIONS:
            raise BundleError(f"The manifest's precision is {self.precision!r}; expected one of {PRECISIONS}.")
        self._check_tensors()
        if not self.runtimes:
            raise BundleError("The manifest names no runtime; export the bundle again.")
        for runtime, files in self.runtimes.items():
            if missing := [name for name in GRAPHS if name not in files]:
                raise BundleError(f"The manifest names no {', '.join(missing)} for the runtime {runtime!r}.")
            for path in files.values():
                self._require_listed(path)
                if path.endswith(".xml"):
                    self._require_listed(path[:-4] + ".bin")  # the weights, which OpenVINO finds by name
        self._require_listed("tokenizer.json")
        if self.golden is not None:
            self._require_listed(self.golden)

    def _require_listed(self, path: str) -> None:
        if path not in self.files:
            raise BundleError(f"The manifest uses {path!r} and has no hash of it under files; export the bundle again.")

    def _check_tensors(self) -> None:
        """Check that every input of the mask decoder is an output of one of the encoders."""
        side, image, text, decoder = self.input_size, *(self.graphs[name] for name in GRAPHS)
        outputs = [TensorSpec("logits", (1, 1, side // 4, side // 4), "float32")]
        if self.presence is not None and self.presence.source == "head":
            outputs.append(TensorSpec("presence", (1, 1), "float32"))
        for name, graph, expected in (
            ("image_encoder", image.inputs, (TensorSpec("image", (1, 3, side, side), "float32"),)),
            ("text_encoder", text.inputs, (TensorSpec("tokens", (1, self.word_len), "int64"),)),
            ("mask_decoder", decoder.outputs, tuple(outputs)),
        ):
            if graph != expected:
                where = "outputs" if name == "mask_decoder" else "inputs"
                raise BundleError(
                    f"The manifest's {where} of {name} are {', '.join(map(str, graph)) or 'none'}; "
                    f"expected {', '.join(map(str, expected))}."
                )
        features = {tensor.name: tensor for tensor in (*image.outputs, *text.outputs)}
        if len(features) != len(image.outputs) + len(text.outputs):
            raise BundleError("The manifest gives two outputs of the encoders the same name.")
        for tensor in decoder.inputs:
            if features.get(tensor.name) != tensor:
                raise BundleError(
                    f"The mask decoder takes {tensor}, and the encoders give "
                    f"{features.get(tensor.name, 'no tensor of that name')}; export the bundle again."
                )


def long_precision(name: str) -> str:
    """Return "float32" and "float16" for "fp32" and "fp16", any other name as it is."""
    return _SHORT.get(name, name)


class _Reader:
    """A JSON object whose entries are read with their types checked; errors name the entry."""

    def __init__(self, data: object, where: str) -> None:
        self.where = where
        if not isinstance(data, dict):
            raise BundleError(
                f"The manifest's {where or 'top level'} is {_kind(data)}; expected a JSON object with named entries."
            )
        self.data: dict[str, Any] = data

    def __iter__(self) -> Iterator[str]:
        return iter(self.data)

    def get(self, key: str, kind: type, *default: Any) -> Any:
        value = self.data.get(key)
        if value is None and default:
            return default[0]
        if key not in self.data:
            raise BundleError(f"The manifest lacks {self._name(key)!r}; export the bundle again.")
        accepted: Any = (int, float) if kind is float else (kind,)
        if not isinstance(value, accepted) or isinstance(value, bool):
            raise BundleError(f"The manifest's {self._name(key)!r} is {_kind(value)}; expected {_NAMES[kind]}.")
        return float(value) if kind is float else value

    def child(self, key: str) -> _Reader:
        return _Reader(self.get(key, dict), self._name(key))

    def entries(self, key: str, kind: type) -> list[Any]:
        values = self.get(key, list, [])
        return [_Reader({"entry": value}, self._name(key)).get("entry", kind) for value in values]

    def _name(self, key: str) -> str:
        return f"{self.where}.{key}" if self.where else key


_NAMES: dict[type, str] = {int: "a whole number", float: "a number", str: "a text", dict: "an object", list: "a list"}


def _kind(value: object) -> str:
    names: dict[type, str] = {bool: "true or false", type(None): "null"}
    names.update(_NAMES)
    return names.get(type(value), type(value).__name__)


def _triple(reader: _Reader, key: str) -> tuple[float, float, float]:
    values = reader.entries(key, float)
    if len(values) != 3:
        raise BundleError(f"The manifest's {key!r} has {len(values)} numbers; expected three, for R, G and B.")
    return values[0], values[1], values[2]


def _presence(reader: _Reader) -> PresenceSpec:
    spec = PresenceSpec(
        reader.get("source", str),
        reader.get("min_presence", float),
        {name: reader.child("coefficients").get(name, float) for name in reader.get("coefficients", dict, {})},
        reader.get("metrics", dict, {}),
    )
    if spec.source not in PRESENCE_SOURCES or not 0 <= spec.min_presence <= 1:
        raise BundleError(
            f"The manifest's presence has source {spec.source!r} and min_presence {spec.min_presence}; expected one of "
            f"{', '.join(PRESENCE_SOURCES)} and a number in [0, 1]."
        )
    if spec.source == "calibration":
        expected = ("intercept", *STATISTICS)
        if set(spec.coefficients) != set(expected) or not all(map(math.isfinite, spec.coefficients.values())):
            raise BundleError(
                f"The manifest's presence has the coefficients {', '.join(spec.coefficients) or 'none'}; expected "
                f"finite numbers for {', '.join(expected)}."
            )
    return spec


def _strings(reader: _Reader) -> dict[str, str]:
    return {key: reader.get(key, str) for key in reader}


def _file(reader: _Reader) -> FileRecord:
    record = FileRecord(reader.get("sha256", str), reader.get("size", int))
    if len(record.sha256) != 64 or not set(record.sha256) <= set("0123456789abcdef"):
        raise BundleError(f"The manifest's {reader.where}.sha256 is {record.sha256!r}; expected 64 hexadecimal digits.")
    return record


def _graph(reader: _Reader) -> GraphSpec:
    tensors = {
        key: tuple(_tensor(_Reader(entry, f"{reader.where}.{key}")) for entry in reader.get(key, list))
        for key in ("inputs", "outputs")
    }
    return GraphSpec(tensors["inputs"], tensors["outputs"], reader.get("macs", int, None))


def _tensor(reader: _Reader) -> TensorSpec:
    tensor = TensorSpec(reader.get("name", str), tuple(reader.entries("shape", int)), reader.get("dtype", str))
    if tensor.dtype not in DTYPES or any(side < 1 for side in tensor.shape):
        raise BundleError(
            f"The manifest's tensor {tensor} of {reader.where} is not static or of an unknown type; "
            f"expected positive sizes and one of {', '.join(DTYPES)}."
        )
    return tensor


def _plain_tensor(tensor: TensorSpec) -> dict[str, Any]:
    return {"name": tensor.name, "shape": list(tensor.shape), "dtype": tensor.dtype}
