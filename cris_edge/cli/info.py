"""``cris-edge info``: contents of a bundle."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import click

from cris_edge.cli.program import json_option

if TYPE_CHECKING:
    from cris_edge.bundle import Bundle


@click.command()
@click.argument("model", metavar="[DIR]", required=False)
@json_option
def info(model: str | None, as_json: bool) -> None:
    """Describe a bundle DIR, or the default model."""
    from cris_edge.bundle import Bundle, default_model

    bundle = Bundle.open(default_model() if model is None else model)
    if as_json:
        document = {"path": str(bundle.path), "digest": bundle.digest, **bundle.manifest.to_dict()}
        click.echo(json.dumps(document, ensure_ascii=False))
    else:
        click.echo(_text(bundle))


def _text(bundle: Bundle) -> str:
    manifest = bundle.manifest
    size = sum(file.size for file in manifest.files.values())
    lines = [
        f"{manifest.name}  {bundle.path}",
        *([manifest.description] if manifest.description else []),
        f"input       {manifest.input_size} x {manifest.input_size} pixels, {manifest.word_len} tokens",
        f"threshold   {manifest.threshold:g}",
        f"weights     {manifest.precision}, {len(manifest.files)} files, {size / 1e6:.1f} MB",
        f"runtimes    {', '.join(manifest.runtimes)}",
    ]
    for name, graph in manifest.graphs.items():
        work = f", {graph.macs / 1e9:.2f} GMAC" if graph.macs else ""
        lines.append(f"{name}{work}")
        lines += [f"  input     {tensor}" for tensor in graph.inputs]
        lines += [f"  output    {tensor}" for tensor in graph.outputs]
    for row in manifest.metrics:
        figures = "  ".join(f"{key} {value:.2f}" for key, value in row.items() if isinstance(value, float))
        where = " ".join(str(row[key]) for key in ("dataset", "split", "runtime", "precision") if row.get(key))
        lines.append(f"measured    {where}: {figures}")
    lines += [f"{key:<12} {value}" for key, value in manifest.provenance.items() if isinstance(value, str)]
    return "\n".join(lines)
