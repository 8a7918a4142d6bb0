"""Best, worst and random cases of an evaluation in one HTML, PNG or JPEG file."""

from __future__ import annotations

import base64
import html
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np
import numpy.typing as npt

from cris_edge.errors import OptionError
from cris_edge.files import write_whole
from cris_edge.image import THRESHOLD
from cris_edge.image.overlay import draw_overlay
from cris_edge.tokenizer import Tokenizer
from training.data.samples import Source
from training.report import Case, Report
from training.scoring import Predictor, predict

Image = npt.NDArray[np.uint8]
TRUTH, PREDICTION = (40, 180, 60), (230, 60, 50)
"""Colours of the masks, RGB."""
_HEIGHT = 220  # pixels of a panel
_STYLE = "body{font:15px sans-serif;margin:2em;max-width:1200px} figure{margin:0 0 1.5em} img{max-width:100%}"


def write_gallery(
    path: Path,
    report: Report,
    predictor: Predictor,
    source: Source,
    *,
    threshold: float = THRESHOLD,
    min_presence: float = 0.0,
    rows: int = 8,
    seed: int = 0,
) -> None:
    """Write image, truth and prediction of ``rows`` of the best, worst and random cases each.

    Args:
        path: Ends in ``.html`` (with embedded images), ``.png`` or ``.jpg``.
        report: The scores of this predictor on this source.
        predictor: Computes the logits.
        source: The data.
        threshold: As in `training.scoring.score`.
        min_presence: As in `training.scoring.score`.
        rows: Number of cases of each kind.
        seed: Seed of the random cases.

    Raises:
        OptionError: The path has another suffix.
    """
    check_gallery(path)
    ordered = sorted(report.cases, key=lambda case: case.iou if case.matches else float(case.empty))
    random = np.random.default_rng(seed).permutation(len(ordered))[:rows]
    groups = {"Worst": ordered[:rows], "Random": [ordered[i] for i in random], "Best": ordered[::-1][:rows]}
    path.parent.mkdir(parents=True, exist_ok=True)
    title = f"{report.dataset} {report.split}: {len(report.cases)} prompts, mIoU {100 * report.scores.mIoU:.2f}"
    drawn = {name: list(_draw(cases, predictor, source, threshold, min_presence)) for name, cases in groups.items()}
    if path.suffix == ".html":
        write_whole(path, _page(title, drawn))
    else:
        write_whole(path, cv2.imencode(path.suffix, cv2.cvtColor(_sheet(title, drawn), cv2.COLOR_RGB2BGR))[1].tobytes())


def check_gallery(path: Path) -> None:
    """Check the suffix of a gallery.

    Raises:
        OptionError: It is not ``.html``, ``.png`` or ``.jpg``.
    """
    if path.suffix not in (".html", ".png", ".jpg"):
        raise OptionError(f"The gallery {path} ends in {path.suffix!r}; expected .html, .png or .jpg.")


def _draw(
    cases: list[Case], predictor: Predictor, source: Source, threshold: float, min_presence: float
) -> Iterator[tuple[Case, Image]]:
    tokenizer = Tokenizer()
    for case in cases:
        example = source.load(case.index, predictor.input_size)
        mask, _ = list(predict(predictor, example, tokenizer, threshold, min_presence))[case.number]
        truth = draw_overlay(example.image, example.truth(case.number), accent=TRUTH)
        panels = (example.image, truth, draw_overlay(example.image, mask, accent=PREDICTION))
        yield case, np.hstack([_scaled(panel) for panel in panels])


def _scaled(image: Image) -> Image:
    width = round(image.shape[1] * _HEIGHT / image.shape[0])
    resized = cv2.resize(image, (width, _HEIGHT), interpolation=cv2.INTER_AREA)
    return np.asarray(
        cv2.copyMakeBorder(resized, 2, 2, 2, 2, cv2.BORDER_CONSTANT, value=(255, 255, 255)), dtype=np.uint8
    )


def _page(title: str, drawn: dict[str, list[tuple[Case, Image]]]) -> str:
    parts = [f"<!doctype html><meta charset='utf-8'><title>{html.escape(title)}</title><style>{_STYLE}</style>"]
    parts.append(f"<h1>{html.escape(title)}</h1><p>Image, truth (green), prediction (red).</p>")
    for name, cases in drawn.items():
        parts.append(f"<h2>{name}</h2>")
        for case, image in cases:
            data = cv2.imencode(".jpg", cv2.cvtColor(image, cv2.COLOR_RGB2BGR), [cv2.IMWRITE_JPEG_QUALITY, 85])[1]
            source = "data:image/jpeg;base64," + base64.b64encode(data.tobytes()).decode()
            caption = f"“{html.escape(case.sentence)}” · IoU {case.iou:.3f} · <small>{html.escape(case.id)}</small>"
            parts.append(f"<figure><img src='{source}'><figcaption>{caption}</figcaption></figure>")
    return "\n".join(parts) + "\n"


def _sheet(title: str, drawn: dict[str, list[tuple[Case, Image]]]) -> Image:
    rows: list[tuple[str, Image | None]] = [(title, None)]
    for name, cases in drawn.items():
        rows += [(f"{name}: {case.sentence} (IoU {case.iou:.3f})", image) for case, image in cases]
    width = max([720, *(image.shape[1] for _, image in rows if image is not None)])
    strips = []
    for caption, image in rows:
        strip = np.full((24, width, 3), 255, dtype=np.uint8)
        plain = caption.encode("ascii", "replace").decode()  # OpenCV's fonts are ASCII
        cv2.putText(strip, plain, (4, 17), cv2.FONT_HERSHEY_SIMPLEX, 0.5, (0, 0, 0), 1, cv2.LINE_AA)
        strips.append(strip)
        if image is not None:
            missing = width - image.shape[1]
            strips.append(np.pad(image, ((0, 8), (0, missing), (0, 0)), constant_values=255))
    return np.vstack(strips)
