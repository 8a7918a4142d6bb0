"""The three graphs as one network, run by PyTorch's modules or by a runtime's compiled files."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from typing import Any, Protocol

import numpy as np
import torch
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_map

from cris_edge.bundle.manifest import GRAPHS
from cris_edge.errors import ExportError

Array = np.ndarray[Any, np.dtype[Any]]
Tensors = dict[str, Array]
Graph = Callable[[Mapping[str, Array]], Tensors]


class DeployModule(Protocol):
    """One of the three modules that are exported, with its tensors named in order.

    The image encoder takes ``image``, the text encoder ``tokens``, the mask decoder what these two return; it returns
    ``logits`` first.
    """

    @property
    def input_names(self) -> tuple[str, ...]:
        """Names of the inputs."""

    @property
    def output_names(self) -> tuple[str, ...]:
        """Names of the outputs."""

    def __call__(self, *inputs: torch.Tensor) -> Any:
        """Return one tensor, or a tuple of several."""

    def modules(self) -> Iterator[torch.nn.Module]:
        """Iterate over all submodules, as ``nn.Module`` does."""


class Sizes(Protocol):
    """What an export must know about an architecture."""

    @property
    def input_size(self) -> int:
        """S, in pixels."""

    @property
    def word_len(self) -> int:
        """L, in tokens."""

    @property
    def vocab_size(self) -> int:
        """Number of token ids."""

    def to_dict(self) -> dict[str, Any]:
        """Return what the manifest records."""


class Network:
    """An image encoder, a text encoder and a mask decoder that exchange tensors by name."""

    def __init__(self, graphs: Mapping[str, Graph]) -> None:
        self._graphs = dict(graphs)

    def close(self) -> None:
        """Drop the graphs, so that a runtime can free them."""
        self._graphs.clear()

    def encode_image(self, image: Array) -> Tensors:
        """Image (1, 3, S, S) float32 -> the image features by name."""
        return self._graphs["image_encoder"]({"image": image})

    def encode_text(self, tokens: Array) -> Tensors:
        """Tokens (1, L) int64 -> the text features by name."""
        return self._graphs["text_encoder"]({"tokens": tokens})

    def decode(self, image_features: Mapping[str, Array], text_features: Mapping[str, Array]) -> Array:
        """Features of both encoders -> logits (1, 1, S/4, S/4) float32."""
        return self.decode_all(image_features, text_features)["logits"]

    def decode_all(self, image_features: Mapping[str, Array], text_features: Mapping[str, Array]) -> Tensors:
        """Features of both encoders -> every output of the mask decoder by name."""
        return self._graphs["mask_decoder"]({**image_features, **text_features})

    def logits(self, pixels: Array, tokens: Array) -> Array:
        """Image (1, 3, S, S) and k prompts (k, L) -> (k, 1, S/4, S/4); the image is encoded once."""
        features = self.encode_image(pixels)
        return np.concatenate([self.decode(features, self.encode_text(row[None])) for row in tokens])


def of_modules(modules: Sequence[DeployModule], precision: str = "float32") -> Network:
    """Return the three deploy modules as a network; `precision` other than float32 is simulated by rounding."""
    return Network({name: _graph_of(module, precision) for name, module in zip(GRAPHS, modules, strict=True)})


def example_inputs(modules: Sequence[DeployModule], image: Array, tokens: Array) -> dict[str, dict[str, torch.Tensor]]:
    """Return the inputs of each graph for one image and one prompt, by graph and tensor name.

    Raises:
        ExportError: The mask decoder takes a tensor that neither encoder returns.
    """
    known: Tensors = {"image": image, "tokens": tokens}
    inputs: dict[str, dict[str, torch.Tensor]] = {}
    for name, module in zip(GRAPHS, modules, strict=True):
        missing = [tensor for tensor in module.input_names if tensor not in known]
        if missing:
            raise ExportError(f"The graph {name} takes {', '.join(missing)}, which neither encoder returns.")
        inputs[name] = {tensor: torch.from_numpy(known[tensor]) for tensor in module.input_names}
        if name != "mask_decoder":
            known |= _graph_of(module, "float32")(known)
    return inputs


def _graph_of(module: DeployModule, precision: str) -> Graph:
    arithmetic = nullcontext() if precision == "float32" else _Rounded(getattr(torch, precision))

    def run(inputs: Mapping[str, Array]) -> Tensors:
        with torch.inference_mode(), arithmetic:
            found = module(*(torch.from_numpy(inputs[name]) for name in module.input_names))
        outputs = found if isinstance(found, (tuple, list)) else (found,)
        return {name: output.numpy() for name, output in zip(module.output_names, outputs, strict=True)}

    return run


class _Rounded(TorchFunctionMode):
    """Simulated arithmetic in `dtype`: operands and results are rounded to it, sums kept in float32, as hardware does.

    ``torch.autocast`` would leave most operators in float32, and takes minutes for a convolution that the CPU has no
    instructions for.
    """

    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()
        self._dtype = dtype

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        with torch._C.DisableTorchFunction():
            args, kwargs = tree_map(self._round, (args, kwargs or {}))
            return tree_map(self._round, func(*args, **kwargs))

    def _round(self, value: Any) -> Any:
        if isinstance(value, torch.Tensor) and value.dtype == torch.float32:
            return value.to(self._dtype).float()
        return value
