"""``cris-edge doctor``: runtimes, devices and instruction sets of this machine."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import click

from cris_edge.cli.program import json_option

if TYPE_CHECKING:
    from cris_edge.doctor import DoctorReport


@click.command()
@click.argument("models", metavar="[DIR]...", nargs=-1)
@json_option
def doctor(models: tuple[str, ...], as_json: bool) -> None:
    """List the runtimes, devices and instruction sets of this machine, and what to install for more.

    For each bundle DIR, or the default model, lists where it can run.
    """
    from cris_edge.bundle import default_model
    from cris_edge.doctor import examine

    report = examine(models or [default_model()])
    click.echo(json.dumps(report.to_dict(), ensure_ascii=False) if as_json else _text(report))


def _text(report: DoctorReport) -> str:
    memory = f", {report.memory / 2**30:.1f} GiB of memory" if report.memory else ""
    lines = [
        f"cris-edge {report.version}, Python {report.python}, {report.system}",
        f"processor: {report.processor}, {report.cores} cores ({report.physical_cores} physical){memory}",
        f"instruction sets: {', '.join(report.instruction_sets) or 'unknown'}",
        f"cache: {report.cache}, {report.cache_size / 1e6:.1f} MB" if report.cache else "cache: none, HOME is unknown",
    ]
    for runtime in report.runtimes:
        if not runtime.usable:
            lines.append(f"{runtime.name}: unavailable; {runtime.advice}")
            continue
        lines.append(f"{runtime.name} {runtime.version}:")
        for device in runtime.devices:
            precisions = f", {', '.join(device.precisions)}" if device.precisions else ""
            name = f" ({device.full_name})" if device.full_name else ""
            lines.append(f"  {device.name}{name}{precisions}")
        if runtime.advice:
            lines.append(f"  {runtime.advice}")
    lines.append(f"NPU drivers: {', '.join(report.npus) or 'none found'}")
    for bundle in report.bundles:
        lines.append(f"{bundle.name or bundle.path}: {bundle.message or 'runs with'}")
        for prospect in bundle.prospects:
            where = f"on {', '.join(prospect.devices)}" if prospect.devices else "on no device of this machine"
            lines.append(f"  {prospect.runtime} {where}" + (f" ({prospect.message})" if prospect.message else ""))
    return "\n".join(lines)
