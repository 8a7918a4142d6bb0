"""Runtimes by name: those of this package, and those that other packages register."""

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
    """A runtime of this package; nothing of it is imported before it is used."""

    module: str
    factory: str
    package: str  # that has to be installed
    why: str  # it is preferred, in the words of `Segmenter.info`
    on_cpu: bool = True  # it computes on a CPU too, at its speed


# In the order of preference of runtime="auto".
_BUILTIN = {
    "openvino": _Builtin("cris_edge.backends.ov", "OvBackend", "openvino", "the fastest of ours on a CPU"),
    "onnxruntime": _Builtin("cris_edge.backends.ort", "OrtBackend", "onnxruntime", "it runs on every CPU"),
    "qnn": _Builtin(
        "cris_edge.backends.qnn", "QnnBackend", "onnxruntime_qnn", "it runs on Qualcomm's NPU", on_cpu=False
    ),
}


def names() -> list[str]:
    """Every runtime that has a name here, installed or not, in the order of preference."""
    return [*_BUILTIN, *(name for name in _registered() if name not in _BUILTIN)]


def available() -> list[str]:
    """The runtimes that are installed and compute on a CPU, in the order of preference.

    Nothing is imported to find out.
    """
    return [name for name in names() if (name not in _BUILTIN or _BUILTIN[name].on_cpu) and is_available(name)]


def is_available(name: str) -> bool:
    """Whether a runtime is installed."""
    if name in _BUILTIN:
        try:
            return importlib.util.find_spec(_BUILTIN[name].package) is not None
        except ValueError:  # loaded in an unusual way, for instance from a frozen app
            return True
    return name in _registered()


def how_to_install(name: str) -> str:
    """What to do to get a runtime."""
    if name in _BUILTIN:
        return f'install it with pip install "cris-edge[{name}]"'
    return "install the package that registers it"


def describe(name: str) -> RuntimeReport:
    """Version and devices of an installed runtime; nothing of one that another package registered.

    Raises:
        RuntimeMissingError: It is not installed, or cannot be loaded.
    """
    if name not in _BUILTIN:
        return RuntimeReport("")
    found: RuntimeReport = importlib.import_module(_BUILTIN[name].module).describe()
    return found


def create(name: str, options: BackendOptions | None = None) -> Backend:
    """The runtime of that name, with its options checked.

    Raises:
        OptionError: No runtime has this name, or it does not know an option.
        RuntimeMissingError: The runtime is not installed.
    """
    return _factory(name)(options or BackendOptions())


def choose(held: Iterable[str]) -> tuple[str, str]:
    """The best installed runtime among those `held` by a bundle, and why it is that one.

    Raises:
        RuntimeMissingError: None of them is installed.
    """
    held = list(held)
    wanted = [name for name in _BUILTIN if name in held]
    missing: list[str] = []
    for name in wanted:
        if not is_available(name):
            missing.append(name)
        elif missing:
            return name, f"{' and '.join(missing)} is not installed here, and {name} is: {_BUILTIN[name].why}"
        else:
            return name, f"of what is installed here and in this bundle, {name} comes first: {_BUILTIN[name].why}"
    for name in held:
        if name not in _BUILTIN and name in _registered():
            return name, f"{name} is the only runtime installed here that this bundle holds"
    raise RuntimeMissingError(
        f"No runtime of this bundle is installed (it holds {', '.join(held)}); install one with "
        + (f'pip install "cris-edge[{wanted[0]}]".' if wanted else "the package that registers it.")
    )


def _factory(name: str) -> Factory:
    if name in _BUILTIN:
        builtin = _BUILTIN[name]
        factory: Factory = getattr(importlib.import_module(builtin.module), builtin.factory)
        return factory
    try:
        entry = _registered()[name]
    except KeyError:
        raise OptionError(f"No runtime is called {name!r}; expected one of {', '.join(names())}.") from None
    try:
        loaded: Factory = entry.load()
    except (ImportError, AttributeError) as error:
        raise RuntimeMissingError(
            f"The runtime {name!r}, which {entry.value} registers, cannot be loaded: {error}."
        ) from error
    return loaded


def _registered() -> dict[str, Any]:
    """Entry points of other packages; the names of this package's own runtimes are not theirs to take."""
    from importlib.metadata import entry_points

    return {entry.name: entry for entry in entry_points(group=ENTRY_POINTS) if entry.name not in _BUILTIN}
