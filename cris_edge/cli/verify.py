"""``cris-edge verify``: check a bundle's files, and its outputs in every runtime."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import click

from cris_edge.cli.program import complain, json_option

if TYPE_CHECKING:
    from cris_edge.doctor.verification import Report


@click.command()
@click.argument("model", metavar="[DIR]", required=False)
@json_option
@click.pass_context
def verify(context: click.Context, /, model: str | None, as_json: bool) -> None:
    """Check a bundle DIR, or the default model: hashes, shapes, and golden outputs in every runtime."""
    from cris_edge.bundle import default_model
    from cris_edge.doctor.verification import verify as run

    report = run(default_model() if model is None else model)
    click.echo(json.dumps(report.to_dict(), ensure_ascii=False) if as_json else _text(report))
    if not report.passed:
        failed = [check for check in report.checks if check.outcome == "failed"]
        if failed:
            complain(f"{report.name} failed in {failed[0].runtime}: {failed[0].message}")
        else:
            complain(f"{report.name} could not be checked: {report.checks[0].runtime}: {report.checks[0].message}")
        context.exit(1)


def _text(report: Report) -> str:
    lines = [f"{report.name}: the hashes of all {report.files} files match, {report.size / 1e6:.1f} MB"]
    for check in report.checks:
        line = f"{check.runtime} {check.precision or check.asked}: {check.outcome}"
        if check.max_abs_diff is not None:
            allowed = f" (tolerance {check.tolerance:.3g})" if check.tolerance is not None else ""
            line += f", logits differ by {check.max_abs_diff:.2g}{allowed} on {report.pairs} golden pairs"
            line += f", mask IoU {check.mask_iou:.4f}"
        if check.accuracy is not None:
            line += f"; mIoU {check.accuracy[0]:.1f}, in PyTorch {check.accuracy[1]:.1f}"
        lines.append(line + (f" ({check.message})" if check.message else ""))
    return "\n".join(lines)
