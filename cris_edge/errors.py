"""Every error that CRIS Edge raises on purpose.

::

    CrisEdgeError
    ├── InputError (ValueError)       something the caller passed
    │   ├── ImageError                an image source that cannot be read or has no pixels
    │   ├── PromptError               a sentence that is empty or not text
    │   ├── OptionError               an unknown runtime, device, precision or setting
    │   └── DataError                 a labelled data file, one of its samples, or a mask in it
    ├── ModelError                    a model file or folder
    │   ├── BundleError               a bundle that is missing, incomplete, changed or of an unknown format
    │   ├── CheckpointError           a training checkpoint of another kind or another architecture
    │   └── ExportError               a graph that could not be lowered, or does not equal PyTorch
    └── RuntimeFailure                an inference runtime
        ├── RuntimeMissingError       it is not installed; the message names the pip line
        └── DeviceError               it is installed and cannot run this graph on this device

Errors of other libraries are mapped onto these with ``raise ... from error``, so the cause is never lost.
"""

from __future__ import annotations


class CrisEdgeError(Exception):
    """Base of all errors of this project: one sentence that says what was given, what was expected, what to do."""


def first_line(error: BaseException) -> str:
    """Return the first line of an error's message without its full stop, to quote it; its type's name if empty."""
    return _lines(error)[0].rstrip(".")


def last_line(error: BaseException) -> str:
    """Return the last line, as `first_line` does: OpenVINO's messages begin with places in its source."""
    return _lines(error)[-1].rstrip(".")


def _lines(error: BaseException) -> list[str]:
    return [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]


class InputError(CrisEdgeError, ValueError):
    """Something the caller passed is not what the call takes."""


class ImageError(InputError):
    """An image source cannot be read, or holds no usable pixels."""


class PromptError(InputError):
    """A sentence is empty or is not text."""


class OptionError(InputError):
    """A runtime, device, precision or other setting is unknown or not available here."""


class DataError(InputError):
    """A labelled data file, one of its samples or a mask cannot be used."""


class ModelError(CrisEdgeError):
    """A model file or folder cannot be used."""


class BundleError(ModelError):
    """A bundle is missing, incomplete, changed since it was written, or of a format this version does not read."""


class CheckpointError(ModelError):
    """A checkpoint is of another kind, damaged, or of another architecture than was asked for."""


class ExportError(ModelError):
    """A graph could not be lowered to a runtime, or its outputs differ from PyTorch's."""


class RuntimeFailure(CrisEdgeError):
    """An inference runtime could not do its part."""


class RuntimeMissingError(RuntimeFailure, ImportError):
    """The runtime asked for is not installed."""


class DeviceError(RuntimeFailure):
    """The runtime is installed but cannot run this graph on this device."""
