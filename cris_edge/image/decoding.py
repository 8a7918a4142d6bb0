"""Image decoding: a path, encoded bytes, a numpy array or a PIL image becomes an RGB array."""

from __future__ import annotations

import logging
import os
import stat
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias

import numpy as np
from numpy.typing import NDArray

from cris_edge.errors import ImageError, OptionError, first_line
from cris_edge.image.completeness import check_complete
from cris_edge.image.header import read_header
from cris_edge.image.profile import is_foreign, read_profile

if TYPE_CHECKING:
    import PIL.Image


class ArrayLike(Protocol):
    """An object that numpy converts: a `Frame`, a PyTorch tensor."""

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> NDArray[Any]:
        """The pixels, (H, W, 3) uint8."""


# A string, because an app may not have PIL.
ImageSource: TypeAlias = (
    "str | os.PathLike[str] | bytes | bytearray | memoryview | NDArray[np.uint8] | PIL.Image.Image | ArrayLike"
)

MAX_PIXELS = 100_000_000
MAX_SIDE = 65_535  # JPEG's own limit
MAX_FILE_BYTES = 1 << 30

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class _Limits:
    pixels: int
    incomplete: bool


def load_image(
    source: ImageSource, *, color: str = "rgb", max_pixels: int = MAX_PIXELS, incomplete: bool = False
) -> NDArray[np.uint8]:
    """Load an image from any source.

    Args:
        source: One of

            - a path (`str` or `os.PathLike`) of a JPEG, PNG, WebP, GIF (first frame), BMP, TIFF, PNM, JPEG 2000 or
              AVIF file, as far as the installed OpenCV reads them, or the `bytes` of such a file. EXIF orientation is
              applied, 16 bits are reduced to 8, palettes are expanded;
            - a numpy array (H, W, 3), (H, W, 4) with alpha, (H, W) or (H, W, 1) grey, uint8, of any strides. It is not
              copied unless it has to be converted, so do not modify it while a result refers to it;
            - a `PIL.Image.Image`; its EXIF orientation is applied;
            - any object with ``__array__``, such as a `Frame` or a PyTorch tensor on the CPU, as for numpy arrays.

            Transparent images are composited on white, as viewers and browsers show them. JPEG, PNG and WebP files and
            PIL images with the profile of another RGB space, such as Display P3, are converted to sRGB if Pillow is
            installed; without it, the profile is ignored.
        color: Channel order of arrays: "rgb", or "bgr" as in OpenCV. Other sources ignore it.
        max_pixels: Most pixels that are accepted; checked before anything is decoded.
        incomplete: Whether to accept a JPEG of which rows or scans are missing; decoders fill them with grey.

    Returns:
        (H, W, 3) uint8 RGB, C-contiguous.

    Raises:
        ImageError: The source is unusable.
        OptionError: `color` is neither "rgb" nor "bgr".
    """
    if color not in ("rgb", "bgr"):
        raise OptionError(f'color is {color!r}; expected "rgb" or "bgr".')
    limits = _Limits(max_pixels, incomplete)
    if isinstance(source, np.ndarray):
        return _from_array(source, color, limits)
    if isinstance(source, (str, os.PathLike)):
        name = os.fsdecode(source)
        return _decode(_read_file(name), f"{name!r}", limits)
    if isinstance(source, (bytes, bytearray, memoryview)):
        return _decode(bytes(source), "The encoded image", limits)
    pillow = sys.modules.get("PIL.Image")  # a caller with a PIL image has imported it
    if pillow is not None and isinstance(source, pillow.Image):
        return _from_pillow(source, limits)
    if hasattr(source, "__array__"):
        return _from_array(_as_array(source), color, limits)
    raise ImageError(
        f"An image cannot be read from {describe(source)}; pass a path, the bytes of an image file, "
        "a (H, W, 3) uint8 numpy array or a PIL image."
    )


def _as_array(source: Any) -> NDArray[Any]:
    try:
        return np.asarray(source)
    except Exception as error:  # foreign code: a tensor on another device, for instance
        raise ImageError(f"{describe(source)} cannot be converted to an array: {first_line(error)}") from error


def _read_file(name: str) -> bytes:
    if name.startswith(("http://", "https://")):
        raise ImageError(f"{name!r} is an address on the web; download the image first.")
    try:
        status = os.stat(name)  # noqa: PTH116 - Path("") would be the current folder
        if stat.S_ISDIR(status.st_mode):
            raise ImageError(f"{name!r} is a folder; expected an image file.")
        if not stat.S_ISREG(status.st_mode):
            raise ImageError(f"{name!r} is not a regular file; read it yourself and pass the bytes.")
        if status.st_size > MAX_FILE_BYTES:
            raise ImageError(f"{name!r} has {status.st_size:,} bytes; the limit is {MAX_FILE_BYTES:,}.")
        return Path(name).read_bytes()
    except FileNotFoundError as error:
        raise ImageError(f"There is no image file {name!r}.") from error
    except (OSError, ValueError) as error:  # ValueError: a NUL character in the name
        reason = error.strerror if isinstance(error, OSError) else error
        raise ImageError(f"The image file {name!r} cannot be read: {reason}.") from error


def _decode(data: bytes, name: str, limits: _Limits) -> NDArray[np.uint8]:
    import cv2

    if not data:
        raise ImageError(f"{name} is empty; expected an image.")
    header = read_header(data)
    if header is None:
        raise ImageError(f"{name} is not an image of a known format (JPEG, PNG, WebP, GIF, BMP, TIFF, …).")
    if header.format in ("HEIC", "RAW"):
        _check_size(header.height, header.width, name, limits)
        return _decode_with_library(data, name, header.format, limits)
    if header.colour_space:
        raise ImageError(f"{name} is in the colour space {header.colour_space}, which is not read; convert it to RGB.")
    if header.truncated:
        raise ImageError(f"{name} is incomplete: its {header.format} data ends early; copy or download it again.")
    _check_size(header.height, header.width, name, limits)
    if header.format == "TIFF" and not header.width * header.height:
        raise ImageError(f"{name} is damaged or incomplete: its TIFF header states no size.")
    # IMREAD_COLOR would drop transparency, which JPEG does not have.
    flags = cv2.IMREAD_COLOR | cv2.IMREAD_IGNORE_ORIENTATION if header.format == "JPEG" else cv2.IMREAD_UNCHANGED
    if not header.ended:
        data += b"\xff\xd9"
    try:
        pixels = cv2.imdecode(np.frombuffer(data, np.uint8), flags)
    except (cv2.error, MemoryError) as error:
        raise ImageError(f"{name} cannot be decoded as {header.format}: {first_line(error)}.") from error
    if pixels is None or pixels.size == 0:
        raise ImageError(f"{name} cannot be decoded: its {header.format} data is damaged or not supported by OpenCV.")
    _check_size(pixels.shape[0], pixels.shape[1], name, limits)
    if header.format == "JPEG" and not limits.incomplete:
        check_complete(data, np.asarray(pixels, np.uint8), header, name)
    if header.transparent_grey is not None and pixels.ndim == 2:
        white = 65535 if pixels.dtype == np.uint16 else 255
        pixels = np.where(pixels == header.transparent_grey, white, pixels).astype(pixels.dtype)
    if pixels.dtype == np.uint16 or (header.maximum and pixels.dtype == np.uint8):
        pixels = cv2.convertScaleAbs(pixels, alpha=255 / (header.maximum or 65535))
    if pixels.dtype != np.uint8:
        raise ImageError(f"{name} has {pixels.dtype} values; convert it to an image of 8 or 16 bits per channel.")
    rgb = _to_rgb(np.asarray(pixels, np.uint8), "bgr")
    profile = read_profile(data)
    if profile is not None:
        rgb = _to_srgb(rgb, profile, name)
    return rgb if header.format == "TIFF" else _turn(rgb, header.orientation)  # OpenCV's TIFF decoder applies it


def _decode_with_library(data: bytes, name: str, kind: str, limits: _Limits) -> NDArray[np.uint8]:
    """Decode a camera's raw file or a HEIC image, which OpenCV cannot, if the library for it is installed."""
    import io

    try:
        if kind == "RAW":
            import rawpy

            with rawpy.imread(io.BytesIO(data)) as raw:
                _check_size(raw.sizes.height, raw.sizes.width, name, limits)
                return np.ascontiguousarray(raw.postprocess(), np.uint8)
        import pillow_heif

        image = pillow_heif.open_heif(io.BytesIO(data), convert_hdr_to_8bit=True)
        _check_size(image.size[1], image.size[0], name, limits)
        return _from_pillow(image.to_pillow(), limits)
    except ModuleNotFoundError as error:
        library = "rawpy" if kind == "RAW" else "pillow-heif"
        raise ImageError(
            f"{name} is a {kind} image, which OpenCV does not read; convert it to JPEG, or pip install {library}."
        ) from error
    except ImageError:
        raise
    except Exception as error:  # the libraries have no common base of errors
        raise ImageError(f"{name} cannot be decoded as {kind}: {first_line(error)}.") from error


def _to_srgb(rgb: NDArray[np.uint8], profile: bytes, name: str) -> NDArray[np.uint8]:
    """Convert (H, W, 3) from another RGB space to sRGB with Pillow; unchanged if it is not installed."""
    try:
        import io

        from PIL import Image, ImageCms
    except ImportError:
        logger.info("%s has a colour profile, which is ignored without Pillow; its colours may be paler", name)
        return rgb
    try:
        source, target = ImageCms.ImageCmsProfile(io.BytesIO(profile)), ImageCms.createProfile("sRGB")
        converted = ImageCms.profileToProfile(Image.fromarray(rgb), source, target)
    except (ImageCms.PyCMSError, OSError, ValueError) as error:
        logger.info("%s has a damaged colour profile, which is ignored: %s", name, first_line(error))
        return rgb
    return np.array(converted, np.uint8)


def _turn(rgb: NDArray[np.uint8], orientation: int) -> NDArray[np.uint8]:
    """Apply an EXIF orientation."""
    if orientation >= 5:  # stored sideways
        rgb = rgb.transpose(1, 0, 2)
    if orientation in (2, 3, 6, 7):
        rgb = rgb[:, ::-1]
    if orientation in (3, 4, 7, 8):
        rgb = rgb[::-1]
    return np.ascontiguousarray(rgb)


def _from_array(array: NDArray[Any], color: str, limits: _Limits) -> NDArray[np.uint8]:
    shape = array.shape
    if array.dtype != np.uint8:
        raise ImageError(f"The image is {describe(array)}; expected uint8 (0 to 255).{_advice(array)}")
    if array.ndim not in (2, 3) or (array.ndim == 3 and shape[2] not in (1, 3, 4)):
        hint = " Use transpose(1, 2, 0) to move the channels last." if array.ndim == 3 and shape[0] in (1, 3, 4) else ""
        raise ImageError(
            f"The image is {describe(array)}; expected (H, W, 3), (H, W) grey or (H, W, 4) with alpha.{hint}"
        )
    if array.size == 0:
        raise ImageError(f"The image array has no pixels: its shape is {shape}.")
    _check_size(shape[0], shape[1], "The image array", limits)
    return _to_rgb(np.asarray(array), color)


def _from_pillow(image: Any, limits: _Limits) -> NDArray[np.uint8]:
    _check_size(image.height, image.width, "The PIL image", limits)
    if image.width == 0 or image.height == 0:
        raise ImageError(f"The PIL image has no pixels: its size is {image.size}.")
    try:
        orientation = image.getexif().get(0x0112, 1)
        if image.mode.startswith("I") or image.mode == "F":
            converted = _to_rgb(_grey_to_8_bits(np.asarray(image), image.mode), "rgb")
        elif image.mode in ("RGBA", "RGBa", "LA", "La", "PA") or "transparency" in image.info:
            converted = _to_rgb(np.asarray(image.convert("RGBA")), "rgb")
        else:
            converted = np.asarray(image.convert("RGB"))
            profile = image.info.get("icc_profile")
            if isinstance(profile, bytes) and image.mode == "RGB" and is_foreign(profile):
                converted = _to_srgb(converted, profile, "The PIL image")
    except ImageError:
        raise
    except Exception as error:  # Pillow decodes lazily, and its decoders raise many types on damaged files
        raise ImageError(f"The PIL image cannot be decoded: {first_line(error)}.") from error
    return _turn(converted, orientation if isinstance(orientation, int) and 1 <= orientation <= 8 else 1)


def _grey_to_8_bits(values: NDArray[Any], mode: str) -> NDArray[np.uint8]:
    """Scale grey of more than 8 bits by the smallest range that holds it: 65,535, for floats also 1 or 255."""
    low, high = float(values.min()), float(values.max())
    white = next((white for white in ((1, 255, 65535) if mode == "F" else (65535,)) if high <= white), None)
    if white is None or not low >= 0:  # NaN is not
        raise ImageError(f'The PIL image (mode "{mode}") exceeds 0 to 65,535; convert it to 8 bits.')
    return np.round(values * (255 / white)).astype(np.uint8)


def _to_rgb(array: NDArray[np.uint8], color: str) -> NDArray[np.uint8]:
    """Convert (H, W), (H, W, 1), (H, W, 3) or (H, W, 4) in the given channel order to (H, W, 3) RGB."""
    import cv2

    if array.ndim == 2 or array.shape[2] == 1:
        grey = array if array.ndim == 2 else array[:, :, 0]
        return np.asarray(cv2.cvtColor(np.ascontiguousarray(grey), cv2.COLOR_GRAY2RGB), np.uint8)
    array = np.ascontiguousarray(array)
    if array.shape[2] == 4:
        alpha = array[:, :, 3:]
        if alpha.min() < 255:
            weighted = array[:, :, :3].astype(np.uint16) * alpha
            weighted += 255 * (255 - alpha.astype(np.uint16)) + 127  # white shows through; 127 rounds
            array = (weighted // 255).astype(np.uint8)
        else:
            array = np.ascontiguousarray(array[:, :, :3])
    return np.asarray(cv2.cvtColor(array, cv2.COLOR_BGR2RGB), np.uint8) if color == "bgr" else array


def _check_size(height: int, width: int, name: str, limits: _Limits) -> None:
    if height * width > limits.pixels:
        raise ImageError(
            f"{name} has {width} x {height} = {height * width / 1e6:,.0f} megapixels; the limit is "
            f"{limits.pixels / 1e6:,.0f}. Resize or crop it first."
        )
    if max(height, width) > MAX_SIDE:
        raise ImageError(f"{name} has {width} x {height} pixels; the limit is {MAX_SIDE:,} per side. Resize it first.")


def describe(value: object) -> str:
    """Describe a value for an error message: the shape and dtype of an array, else the type."""
    if isinstance(value, np.ndarray):
        return f"an array of shape {value.shape} and dtype {value.dtype}"
    return "None" if value is None else f"an object of type {type(value).__module__}.{type(value).__qualname__}"


def _advice(array: NDArray[Any]) -> str:
    """Return how to convert an image array that is not uint8, where that is clear."""
    if array.dtype.kind == "f" and array.size:
        if np.isnan(array).any():
            return " It contains NaN."
        if array.min() >= 0 and array.max() <= 1:
            return " Convert values in [0, 1] with (image * 255).round().astype(numpy.uint8)."
    elif array.dtype == np.uint16:
        return " Convert 16 bits with (image // 257).astype(numpy.uint8)."
    return ""
