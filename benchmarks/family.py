"""``python -m benchmarks.family``: parameters, operations and latency of every size of CRIS on this machine.

Each member is exported in float32 as `runtimes.export` does it, and runs in every runtime installed and, as it is
trained, in PyTorch: each in a process of its own, on the same image with the same threads, in interleaved rounds.
Weights are random unless ``--checkpoints`` has a file named after the member (``tiny.pt``): latency does not depend on
them.
"""

from __future__ import annotations

import logging
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click

from benchmarks import harness
from benchmarks.harness import RESULTS, Document, Workers, milliseconds
from benchmarks.provenance import checkpoint_record
from cris_edge.backends import registry
from cris_edge.benchmark.results import table
from cris_edge.benchmark.rounds import Progress, interleave
from cris_edge.benchmark.runner import PROMPT, synthetic_image
from cris_edge.benchmark.worker import Worker
from cris_edge.bundle import GRAPHS, Bundle
from cris_edge.device.processor import physical_cores
from cris_edge.errors import CheckpointError, CrisEdgeError, OptionError
from cris_edge.files import write_whole

MEMBERS = ("nano", "tiny", "small", "r50", "r101")
PYTORCH = "pytorch"
LOWERED = ("onnxruntime", "openvino")


class Maker:
    """Makes the checkpoint and the bundle of a member, in a process of its own, whose memory is freed with it."""

    info: dict[str, Any] = {}  # noqa: RUF012 - every worker's subject must have it

    def make(
        self, recipe: str, architecture: dict[str, Any] | None, checkpoint: str, bundle: str, runtimes: list[str]
    ) -> dict[str, Any]:
        """Write what is missing; returns the facts about the network that go into the result file.

        Args:
            recipe: Name of the recipe.
            architecture: Fields that differ from the recipe's, for tests.
            checkpoint: File; where it exists, its weights are taken.
            bundle: Folder.
            runtimes: Runtimes to export for.
        """
        import torch

        from runtimes.export import Options, export
        from training.checkpoint import load_model, read_checkpoint, save_model
        from training.model import CRIS, Architecture
        from training.recipes import recipe as named

        recorded: Any = None
        if Path(checkpoint).exists():
            model, recorded = load_model(checkpoint), read_checkpoint(checkpoint).get("metrics")
        else:
            torch.manual_seed(0)
            fields = {**named(recipe).architecture.to_dict(), **(architecture or {})}
            model = CRIS(Architecture.from_dict(fields)).eval()
            save_model(checkpoint, model, recipe=recipe)
        facts = {
            "input_size": model.architecture.input_size,
            "parameters": sum(parameter.numel() for parameter in model.parameters()),
            "token_table": model.backbone.token_embedding.weight.numel(),
            "recorded_mIoU": recorded.get("mIoU") if isinstance(recorded, dict) else None,
        }
        del model
        if not Path(bundle).exists():
            export(Path(checkpoint), Path(bundle), Options(runtimes=tuple(runtimes)))
        return facts


def measure(
    members: Sequence[str] = MEMBERS,
    *,
    folder: Path | None = None,
    checkpoints: Path | None = None,
    threads: int | None = None,
    runs: int = 30,
    seconds: float = 20.0,
    architecture: dict[str, Any] | None = None,
    progress: Progress = lambda _: None,
) -> Document:
    """Export and measure every member in one run.

    Args:
        members: Names of recipes.
        folder: Keeps checkpoints and bundles for another run; None for a temporary one.
        checkpoints: Folder with ``MEMBER.pt`` files to take the weights from.
        threads: CPU threads of each; None for the number of physical cores.
        runs: Minimum number of runs of each.
        seconds: Approximate time for each.
        architecture: Fields that differ from the recipes', for tests.
        progress: Called with a line of progress.

    Raises:
        OptionError: A member is unknown.
        CheckpointError: A bundle in `folder` was exported from a checkpoint of another input size.
    """
    if unknown := sorted(set(members) - set(MEMBERS)):
        raise OptionError(f"Unknown member {', '.join(unknown)}; choose from {', '.join(MEMBERS)}.")
    threads = threads or physical_cores()
    runtimes = [runtime for runtime in LOWERED if registry.is_available(runtime)]
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory(prefix="cris-edge-family-") as temporary, Workers(progress) as pool:
        kept = folder or Path(temporary)
        kept.mkdir(parents=True, exist_ok=True)
        common = {"image": str(synthetic_image(Path(temporary))), "prompt": PROMPT}
        cases: list[tuple[dict[str, Any], str, Worker]] = []
        for name in members:
            given = checkpoints / f"{name}.pt" if checkpoints else None
            checkpoint = given if given is not None and given.exists() else kept / f"{name}.pt"
            bundle = kept / name
            progress(f"exporting {name}")
            try:
                row = {"name": name, **_make(name, architecture, checkpoint, bundle, runtimes), "runtimes": {}}
            except CheckpointError:
                raise
            except CrisEdgeError as error:
                pool.failed(name, error)
                continue
            rows.append(row)
            options = {"precision": "float32", "threads": threads, "cache_dir": None}
            for runtime in runtimes:
                arguments: dict[str, Any] = {**common, "model": str(bundle)}
                arguments["options"] = {**options, "runtime": runtime}
                if worker := pool.start("benchmarks.peers:BundlePeer", arguments, f"{name}, {runtime}"):
                    cases.append((row, runtime, worker))
            arguments = {**common, "checkpoint": str(checkpoint), "threads": threads, "form": "channels last"}
            if worker := pool.start("benchmarks.peers:pytorch", arguments, f"{name}, {PYTORCH}"):
                cases.append((row, PYTORCH, worker))
        gathered = interleave(pool.workers, runs=runs, seconds=seconds, progress=progress) if cases else []
        for (row, runtime, worker), samples in zip(cases, gathered, strict=True):
            row["runtimes"][runtime] = {
                "version": str(worker.info["version"]),
                "peak_memory": worker.ask("memory")["peak"],
                "seconds": {stage: spread.to_dict() for stage, spread in samples.spreads().items()},
            }
        return pool.document(threads=threads, members=rows)


def _make(
    name: str, architecture: dict[str, Any] | None, checkpoint: Path, bundle: Path, runtimes: list[str]
) -> dict[str, Any]:
    """Make the checkpoint and the bundle of a member; returns the facts about its network."""
    with Worker("benchmarks.family:Maker", {}, f"the export of {name}") as maker:
        facts: dict[str, Any] = maker.ask(
            "make",
            recipe=name,
            architecture=architecture,
            checkpoint=str(checkpoint),
            bundle=str(bundle),
            runtimes=runtimes,
        )
    manifest = Bundle.open(bundle).manifest
    if manifest.input_size != facts["input_size"]:
        raise CheckpointError(
            f"{bundle} was exported at {manifest.input_size} pixels, and {checkpoint} has {facts['input_size']}; use "
            "another --folder."
        )
    macs = {graph: manifest.graphs[graph].macs or 0 for graph in GRAPHS}
    return {**facts, "macs": macs, "checkpoint": checkpoint_record(checkpoint)}


def columns(found: Document) -> list[str]:
    """The runtimes of a result file, in the order of the columns."""
    return list(dict.fromkeys(runtime for member in found["members"] for runtime in member["runtimes"]))


def _seconds(member: dict[str, Any], runtime: str, stage: str) -> dict[str, float] | None:
    return member["runtimes"][runtime]["seconds"][stage] if runtime in member["runtimes"] else None


def to_csv(found: Document) -> str:
    """One row per member."""
    rows = []
    for member in found["members"]:
        row = {"member": member["name"]}
        row |= {name: member[name] for name in ("input_size", "parameters", "token_table")}
        row |= {"macs": sum(member["macs"].values()), **{f"macs_{name}": n for name, n in member["macs"].items()}}
        row["recorded_mIoU"] = member["recorded_mIoU"]
        for runtime in columns(found):
            for stage in ("whole", "next"):
                spread = _seconds(member, runtime, stage)
                for key in ("median", "low", "high", "p90"):
                    row[f"{runtime}_{stage}_{key}_ms"] = round(1e3 * spread[key], 4) if spread else None
        rows.append(row)
    return harness.to_csv(rows)


def to_markdown(found: Document) -> str:
    """The page of a result file."""
    machine, members, runtimes = found["machine"], found["members"], columns(found)
    versions = {runtime: row["version"] for member in members for runtime, row in member["runtimes"].items()}
    scored = any(member["recorded_mIoU"] is not None for member in members)
    head = ["", "pixels", "parameters, M", "token table, M", "GMAC", "next prompt, GMAC"]
    times = [f"{runtime}, ms" for runtime in runtimes]
    rows, following, notes = [], [], []
    for member in members:
        name, macs, miou = member["name"], member["macs"], member["recorded_mIoU"]
        if note := member.get("note"):
            name = f"{name} †"
            notes.append(f"† {member['name']}: {note}")
        rows.append(
            [
                name,
                str(member["input_size"]),
                f"{member['parameters'] / 1e6:.1f}",
                f"{member['token_table'] / 1e6:.1f}",
                f"{sum(macs.values()) / 1e9:.2f}",
                f"{(macs['text_encoder'] + macs['mask_decoder']) / 1e9:.2f}",
                *([f"{miou:.1f}" if miou is not None else ""] if scored else []),
                *(milliseconds(_seconds(member, runtime, "whole")) for runtime in runtimes),
            ]
        )
        following.append([name, *(milliseconds(_seconds(member, runtime, "next")) for runtime in runtimes)])
    parts = [
        "# The family",
        f"{machine['processor']}, {machine['cores']} cores ({machine['physical_cores']} physical), "
        f"{machine['system']}; {', '.join(machine['instruction_sets'])}. Threads: {found['threads']}; float32; "
        f"{', '.join(f'{runtime} {version}' for runtime, version in versions.items())}; cris-edge "
        f"{machine['cris_edge']}, Python {machine['python']}.",
        "One image of 640 x 480 and one prompt, pre- and postprocessing included: median ± half its 95 % interval.",
        table([*head, *(["mIoU recorded"] if scored else []), *times], rows, markdown=True),
        "Another prompt on the same image. PyTorch runs the network as it is trained and reuses only the preprocessed "
        "image.",
        table(["", *times], following, markdown=True),
        "GMAC: multiply-accumulates of the exported graphs, convolutions and matrix products. A prompt reads a few "
        "rows of the token table.",
        *notes,
        *harness.closing(found),
    ]
    return "\n\n".join(parts) + "\n"


def write(found: Document, folder: Path) -> None:
    """Write ``family.json``, ``.md`` and ``.csv``."""
    harness.write_json(folder / "family.json", found)
    write_whole(folder / "family.md", to_markdown(found))
    write_whole(folder / "family.csv", to_csv(found))


@click.command(help=__doc__)
@click.option("--member", "members", multiple=True, type=click.Choice(MEMBERS), default=MEMBERS, help="[default: all]")
@click.option("--checkpoints", type=click.Path(file_okay=False, path_type=Path), help="Folder with MEMBER.pt files.")
@click.option("--folder", type=click.Path(file_okay=False, path_type=Path), help="Keep the exports there for reuse.")
@click.option("--threads", type=click.IntRange(min=1), help="CPU threads of each.  [default: physical cores]")
@click.option("--runs", default=30, show_default=True, help="Minimum number of runs of each.")
@click.option("--seconds", default=20.0, show_default=True, help="Approximate time for each.")
@click.option(
    "--output",
    type=click.Path(file_okay=False, path_type=Path),
    default=RESULTS,
    help="Folder for family.md, .csv and .json.  [default: benchmarks/results]",
)
def main(members: tuple[str, ...], output: Path, **options: Any) -> None:
    """Run the command line."""
    logging.basicConfig(level=logging.WARNING, format="%(message)s", stream=sys.stderr)
    try:
        found = measure(members, progress=harness.progress, **options)
        harness.progress("")
        write(found, output)
    except (CrisEdgeError, OSError) as error:
        click.echo(f"error: {error}", err=True)
        sys.exit(1)
    click.echo(to_markdown(found))
    if not found["members"]:
        sys.exit(1)


if __name__ == "__main__":
    main()
