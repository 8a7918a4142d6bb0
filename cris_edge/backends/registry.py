"""Runtimes by name: built-in ones and those that other packages register."""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, TypeAlias

from cris_edge.backends.base import Backend, BackendOptions, RuntimeReport
from cris_edge.errors import OptionError, RuntimeMissingError

ENTRY_POINTS = "cris_edge.backends"

Factory: TypeAlias = Callable[[BackendOptions], Backend]


@dataclass(frozen=True)
class _Builtin:
    """A built-in runtime, imported on first use."""

    module: str
    factory: str
    package: str  # what must be installed
    why: str  # reason for the choice, shown in `Segmenter.info`
    on_cpu: bool = True  # whether it also runs on a CPU


# In the order in which runtime="auto" tries them.
_BUILTIN = {
    "openvino": _Builtin("cris_edge.backends.ov", "OvBackend", "openvino", "the fastest on a CPU"),
    "onnxruntime": _Builtin("cris_edge.backends.ort", "OrtBackend", "onnxruntime", "it runs on every CPU"),
    "qnn": _Builtin(
        "cris_edge.backends.qnn", "QnnBackend", "onnxruntime_qnn", "it runs on Qualcomm's NPU", on_cpu=False
    ),
}


def names() -> list[str]:
    """Return every known runtime, installed or not, in order of preference."""
    return [*_BUILTIN, *(name for name in _registered() if name not in _BUILTIN)]


def available() -> list[str]:
    """Return the installed runtimes that run on a CPU, in order of preference, without importing them."""
    return [name for name in names() if (name not in _BUILTIN or _BUILTIN[name].on_cpu) and is_available(name)]


def is_available(name: str) -> bool:
    """Return whether a runtime is installed."""
    if name in _BUILTIN:
        try:
            return importlib.util.find_spec(_BUILTIN[name].package) is not None
        except ValueError:  # loaded without a spec, for instance in a frozen app
            return True
    return name in _registered()


def how_to_install(name: str) -> str:
    """Return how to install a runtime, for messages."""
    if name in _BUILTIN:
        return f'install it with pip install "cris-edge[{name}]"'
    return "install the package that registers it"


def describe(name: str) -> RuntimeReport:
    """Return version and devices of an installed built-in runtime; an empty report for others.

    Raises:
        RuntimeMissingError: It is not installed or cannot be loaded.
    """
    if name not in _BUILTIN:
        return RuntimeReport("")
    found: RuntimeReport = importlib.import_module(_BUILTIN[name].module).describe()
    return found


def create(name: str, options: BackendOptions | None = None) -> Backend:
    """Create a backend and check its options.

    Raises:
        OptionError: The runtime or one of its options is unknown.
        RuntimeMissingError: The runtime is not installed.
    """
    return _factory(name)(options or BackendOptions())


def choose(held: Iterable[str]) -> tuple[str, str]:
    """Return the preferred installed runtime among those `held` by a bundle, and the reason.

    Raises:
        RuntimeMissingError: None of them is installed.
    """
    held = list(held)
    candidates = [name for name in _BUILTIN if name in held]
    missing: list[str] = []
    for name in candidates:
        if not is_available(name):
            missing.append(name)
        elif missing:
            return name, f"{' and '.join(missing)} is not installed, and {name} is: {_BUILTIN[name].why}"
        else:
            return name, f"of the installed runtimes in this bundle, {name} comes first: {_BUILTIN[name].why}"
    for name in held:
        if name not in _BUILTIN and name in _registered():
            return name, f"{name} is the only installed runtime in this bundle"
    raise RuntimeMissingError(
        f"No runtime of this bundle is installed (it holds {', '.join(held)}); install one with "
        + (f'pip install "cris-edge[{candidates[0]}]".' if candidates else "the package that registers it.")
    )


def _factory(name: str) -> Factory:
    if name in _BUILTIN:
        builtin = _BUILTIN[name]
        factory: Factory = getattr(importlib.import_module(builtin.module), builtin.factory)
        return factory
    try:
        entry = _registered()[name]
    except KeyError:
        raise OptionError(f"Unknown runtime {name!r}. Available: {', '.join(names())}.") from None
    try:
        loaded: Factory = entry.load()
    except (ImportError, AttributeError) as error:
        raise RuntimeMissingError(
            f"The runtime {name!r} (registered as {entry.value}) cannot be loaded: {error}."
        ) from error
    return loaded


def _registered() -> dict[str, Any]:
    """Return entry points of other packages; they cannot replace built-in runtimes."""
    from importlib.metadata import entry_points

    return {entry.name: entry for entry in entry_points(group=ENTRY_POINTS) if entry.name not in _BUILTIN}
