"""The error tree of CRIS Edge.

::

    CrisEdgeError
    ├── InputError (ValueError)       an invalid argument
    │   ├── ImageError                an image that cannot be read or has no pixels
    │   ├── PromptError               a prompt that is empty or not a string
    │   ├── OptionError               an unknown runtime, device, precision or setting
    │   └── DataError                 a labelled data file, one of its samples, or a mask in it
    ├── ModelError                    a model file or bundle
    │   ├── BundleError               a bundle that is missing, incomplete, modified or of an unknown format
    │   ├── CheckpointError           a checkpoint that is damaged or of an unexpected kind or architecture
    │   └── ExportError               a graph that could not be lowered or differs from PyTorch
    └── RuntimeFailure                an inference runtime
        ├── RuntimeMissingError       not installed; the message names the pip command
        └── DeviceError               installed, but cannot run this graph on this device

Errors of other libraries are chained with ``raise ... from error``, so the cause is never lost.
"""

from __future__ import annotations


class CrisEdgeError(Exception):
    """Base class of all errors raised by this project."""


def first_line(error: BaseException) -> str:
    """Return the first line of an error's message without its full stop, to quote it; its type's name if empty."""
    return _lines(error)[0].rstrip(".")


def last_line(error: BaseException) -> str:
    """Return the last line, as `first_line` does: OpenVINO's messages begin with places in its source."""
    return _lines(error)[-1].rstrip(".")


def _lines(error: BaseException) -> list[str]:
    return [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]


class InputError(CrisEdgeError, ValueError):
    """An argument is not what the call accepts."""


class ImageError(InputError):
    """An image cannot be read or has no usable pixels."""


class PromptError(InputError):
    """A prompt is empty or is not a string."""


class OptionError(InputError):
    """A runtime, device, precision or other setting is unknown or unavailable on this machine."""


class DataError(InputError):
    """A labelled data file, one of its samples, or a mask is invalid."""


class ModelError(CrisEdgeError):
    """A model file or bundle is unusable."""


class BundleError(ModelError):
    """A bundle is missing, incomplete, modified since export, or of an unsupported format."""


class CheckpointError(ModelError):
    """A checkpoint is damaged, or not of the expected kind or architecture."""


class ExportError(ModelError):
    """A graph could not be lowered to a runtime, or its outputs differ from PyTorch."""


class RuntimeFailure(CrisEdgeError):
    """An inference runtime failed."""


class RuntimeMissingError(RuntimeFailure, ImportError):
    """The requested runtime is not installed."""


class DeviceError(RuntimeFailure):
    """The runtime is installed but cannot run this graph on this device."""
