"""``python -m benchmarks.family``: parameters, operations and latency of every size of CRIS, in one run on this device.

Each member is exported as `runtimes.export` does it, in float32, and runs in every runtime installed here and, as it is
trained, in PyTorch: interleaved, each in its own process, on the same image with the same threads. Weights are random
unless ``--checkpoints`` has a file named by the member (``tiny.pt``): latency does not depend on them.
"""

from __future__ import annotations

import csv
import io
import json
import logging
import sys
import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import click

from benchmarks.harness import milliseconds, tell
from cris_edge.backends import registry
from cris_edge.benchmark.results import busy, device, load_average, table
from cris_edge.benchmark.rounds import LatencySamples, Progress, interleave
from cris_edge.benchmark.runner import PROMPT, synthetic_image
from cris_edge.benchmark.spread import Spread
from cris_edge.benchmark.worker import Worker
from cris_edge.bundle import GRAPHS, Bundle
from cris_edge.device.processor import physical_cores
from cris_edge.errors import CheckpointError, CrisEdgeError, OptionError
from cris_edge.files import write_whole

MEMBERS = ("nano", "tiny", "small", "r50", "r101")
PYTORCH = "pytorch"
LOWERED = ("onnxruntime", "openvino")
NETWORK = ("image_encoder", "text_encoder", "mask_decoder", "network")


@dataclass
class Member:
    """One size.

    Attributes:
        name: of its recipe.
        input_size: pixels.
        parameters: of the whole network, the token table among them.
        embeddings: of these, the token table, of which a sentence reads a few rows.
        macs: multiply-accumulates of each graph.
        accuracy: what its checkpoint recorded at its last validation, in percent, and on what it was; None without.
        turns: what was measured, by runtime.
        versions: of the runtimes.
        memory: peak of the process, bytes, by runtime.
    """

    name: str
    input_size: int
    parameters: int
    embeddings: int
    macs: dict[str, int]
    accuracy: float | None = None
    turns: dict[str, LatencySamples] = field(default_factory=dict)
    versions: dict[str, str] = field(default_factory=dict)
    memory: dict[str, int | None] = field(default_factory=dict)

    @property
    def next_macs(self) -> int:
        """Of another sentence about an image that is encoded already."""
        return self.macs["text_encoder"] + self.macs["mask_decoder"]

    def spread(self, runtime: str, stage: str) -> Spread | None:
        """Seconds of "whole" or "next" in a runtime."""
        return Spread.of(self.turns[runtime].of(stage)) if runtime in self.turns else None

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "name": self.name,
            "input_size": self.input_size,
            "parameters": self.parameters,
            "token_table": self.embeddings,
            "macs": self.macs,
            "recorded_mIoU": self.accuracy,
            "runtimes": {
                runtime: {
                    "version": self.versions[runtime],
                    "peak_memory": self.memory.get(runtime),
                    "seconds": {stage: spread.to_dict() for stage, spread in turns.spreads().items()},
                }
                for runtime, turns in self.turns.items()
            },
        }

    def row(self, runtimes: Sequence[str]) -> dict[str, Any]:
        """One line of CSV."""
        row: dict[str, Any] = {
            "member": self.name,
            "input_size": self.input_size,
            "parameters": self.parameters,
            "token_table": self.embeddings,
            "macs": sum(self.macs.values()),
            **{f"macs_{name}": count for name, count in self.macs.items()},
            "recorded_mIoU": self.accuracy,
        }
        for runtime in runtimes:
            for stage in ("whole", "next"):
                spread = self.spread(runtime, stage)
                for key in ("median", "low", "high", "p90"):
                    row[f"{runtime}_{stage}_{key}_ms"] = round(1e3 * getattr(spread, key), 4) if spread else None
        return row


@dataclass
class Family:
    """Everything that was measured in one run.

    Attributes:
        machine: what ran it.
        threads: of every process.
        members: by size.
        runtimes: in the order of the columns.
        failures: what could not be run.
        load_before: processes that wanted the processor before.
    """

    machine: dict[str, Any]
    threads: int
    members: list[Member]
    runtimes: list[str]
    failures: list[dict[str, str]] = field(default_factory=list)
    load_before: float | None = None

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "machine": self.machine,
            "threads": self.threads,
            "load_before": self.load_before,
            "failures": self.failures,
            "members": [member.to_dict() for member in self.members],
        }

    def to_csv(self) -> str:
        """One line a member."""
        rows = [member.row(self.runtimes) for member in self.members]
        text = io.StringIO()
        writer = csv.DictWriter(text, list(rows[0]) if rows else ["member"], lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
        return text.getvalue()

    def to_markdown(self) -> str:
        """The page."""
        told = self.machine
        known = {runtime: member.versions[runtime] for member in self.members for runtime in member.turns}
        versions = ", ".join(f"{runtime} {version}" for runtime, version in known.items())
        head = ["", "pixels", "parameters, M", "of them words", "GMAC", "next sentence, GMAC"]
        times = [f"{runtime}, ms" for runtime in self.runtimes]
        scored = any(member.accuracy is not None for member in self.members)
        rows = [
            [
                member.name,
                str(member.input_size),
                f"{member.parameters / 1e6:.1f}",
                f"{member.embeddings / 1e6:.1f}",
                f"{sum(member.macs.values()) / 1e9:.2f}",
                f"{member.next_macs / 1e9:.2f}",
                *([f"{member.accuracy:.1f}" if member.accuracy is not None else ""] if scored else []),
                *(milliseconds(member.spread(runtime, "whole")) for runtime in self.runtimes),
            ]
            for member in self.members
        ]
        following = [
            [member.name, *(milliseconds(member.spread(runtime, "next")) for runtime in self.runtimes)]
            for member in self.members
        ]
        parts = [
            "# The family",
            f"{told['processor']}, {told['cores']} cores ({told['physical_cores']} physical), {told['system']}; "
            f"{', '.join(told['instruction_sets'])}. Threads: {self.threads}; float32; {versions}; cris-edge "
            f"{told['cris_edge']}, Python {told['python']}.",
            "One image of 640 x 480 and one sentence, pre- and postprocessing included: median, with half the interval "
            "that holds it with 95 %.",
            table([*head, *(["mIoU recorded"] if scored else []), *times], rows, markdown=True),
            "Another sentence about the same image. PyTorch runs the network as it is trained and keeps nothing of the "
            "image but its preprocessing.",
            table(["", *times], following, markdown=True),
            "GMAC: multiply-accumulates of the exported graphs, convolutions and matrix products. *of them words*: the "
            "token table, of which a sentence reads a few rows.",
        ]
        parts += [f"failed: {failure['case']}: {failure['error']}" for failure in self.failures]
        return "\n\n".join([*parts, *busy(self.load_before)]) + "\n"

    def write(self, folder: Path) -> list[Path]:
        """Write ``family.md``, ``.csv`` and ``.json``; returns the paths."""
        contents = {
            "family.md": self.to_markdown(),
            "family.csv": self.to_csv(),
            "family.json": json.dumps(self.to_dict(), indent=1) + "\n",
        }
        folder.mkdir(parents=True, exist_ok=True)
        for name, text in contents.items():
            write_whole(folder / name, text)
        return [folder / name for name in contents]


class Maker:
    """Makes the checkpoint and the bundle of a member, in a process of its own, whose memory is then free again."""

    info: dict[str, Any] = {}  # noqa: RUF012 - nothing to say

    def make(
        self, recipe: str, architecture: dict[str, Any] | None, checkpoint: str, bundle: str, runtimes: list[str]
    ) -> dict[str, Any]:
        """Write what is not there yet; returns what is known of the network.

        Args:
            recipe: its name.
            architecture: fields that are to differ from the recipe's, for tests.
            checkpoint: file; where it is there, its weights are taken.
            bundle: folder.
            runtimes: to export for.
        """
        from dataclasses import replace

        import torch

        from runtimes.export import Options, export
        from training.checkpoint import load_model, read_checkpoint, save_model
        from training.model import CRIS
        from training.recipes import recipe as named

        recorded: Any = None
        if Path(checkpoint).exists():
            model, recorded = load_model(checkpoint), read_checkpoint(checkpoint).get("metrics")
        else:
            torch.manual_seed(0)
            wanted = named(recipe).architecture
            given = {
                key: tuple(value) if isinstance(value, list) else value for key, value in (architecture or {}).items()
            }
            model = CRIS(replace(wanted, **given)).eval()
            save_model(checkpoint, model, recipe=recipe)
        told = {
            "input_size": model.architecture.input_size,
            "parameters": sum(parameter.numel() for parameter in model.parameters()),
            "embeddings": model.backbone.token_embedding.weight.numel(),
            "accuracy": recorded.get("mIoU") if isinstance(recorded, dict) else None,
        }
        del model
        if not Path(bundle).exists():
            export(Path(checkpoint), Path(bundle), Options(runtimes=tuple(runtimes)))
        return told


def measure(
    members: Sequence[str] = MEMBERS,
    *,
    folder: Path | None = None,
    checkpoints: Path | None = None,
    threads: int | None = None,
    runs: int = 30,
    seconds: float = 20.0,
    architecture: dict[str, Any] | None = None,
    say: Progress = lambda _: None,
) -> Family:
    """Export and measure every member in one run.

    Args:
        members: names of recipes.
        folder: keeps checkpoints and bundles for another run; None: a temporary one.
        checkpoints: folder with ``MEMBER.pt`` files whose weights are taken.
        threads: of every process; None: the physical cores.
        runs: turns of each at least.
        seconds: for each, about.
        architecture: fields that differ from the recipes', for tests.
        say: is told the progress.

    Raises:
        OptionError: there is no such member.
        CheckpointError: a checkpoint is of another architecture than its name.
    """
    if unknown := sorted(set(members) - set(MEMBERS)):
        raise OptionError(f"There is no member {', '.join(unknown)}; choose from {', '.join(MEMBERS)}.")
    threads, before = threads or physical_cores(), load_average()
    installed = [runtime for runtime in LOWERED if registry.is_available(runtime)]
    family = Family(device(), threads, [], [*installed, PYTORCH], load_before=before)
    with tempfile.TemporaryDirectory(prefix="cris-edge-family-") as temporary, ExitStack() as stack:
        place = folder or Path(temporary)
        place.mkdir(parents=True, exist_ok=True)
        common = {"image": str(synthetic_image(Path(temporary))), "sentence": PROMPT}
        workers: list[tuple[Member, str, Worker]] = []
        for name in members:
            given = checkpoints / f"{name}.pt" if checkpoints else None
            checkpoint = given if given is not None and given.exists() else place / f"{name}.pt"
            say(f"exporting {name}")
            try:
                with Worker("benchmarks.family:Maker", {}, f"the export of {name}") as maker:
                    told = maker.ask(
                        "make",
                        recipe=name,
                        architecture=architecture,
                        checkpoint=str(checkpoint),
                        bundle=str(place / name),
                        runtimes=installed,
                    )
                manifest = Bundle.open(place / name).manifest
            except CrisEdgeError as error:
                family.failures.append({"case": name, "error": str(error)})
                continue
            if manifest.input_size != told["input_size"]:
                raise CheckpointError(
                    f"{place / name} was exported at {manifest.input_size} pixels and {checkpoint} has "
                    f"{told['input_size']}; give another --folder."
                )
            member = Member(name, macs={graph: manifest.graphs[graph].macs or 0 for graph in GRAPHS}, **told)
            family.members.append(member)
            for runtime in family.runtimes:
                say(f"loading {name}, {runtime}")
                if runtime == PYTORCH:
                    entry = "benchmarks.peers:pytorch"
                    arguments: dict[str, Any] = {"checkpoint": str(checkpoint), "threads": threads}
                    arguments["form"] = "channels last"
                else:
                    entry = "benchmarks.peers:BundlePeer"
                    options = {"runtime": runtime, "precision": "float32", "threads": threads, "cache_dir": None}
                    arguments = {"model": str(place / name), "options": options}
                try:
                    worker = stack.enter_context(Worker(entry, {**common, **arguments}, f"{name}, {runtime}"))
                except CrisEdgeError as error:
                    family.failures.append({"case": f"{name}, {runtime}", "error": str(error)})
                    continue
                member.versions[runtime] = str(worker.info["version"])
                workers.append((member, runtime, worker))
        if workers:
            gathered = interleave([worker for *_, worker in workers], runs=runs, seconds=seconds, progress=say)
            for (member, runtime, worker), turns in zip(workers, gathered, strict=True):
                member.turns[runtime] = turns
                member.memory[runtime] = worker.ask("memory")["peak"]
    return family


@click.command(help=__doc__)
@click.option("--member", "members", multiple=True, type=click.Choice(MEMBERS), default=MEMBERS, help="[default: all]")
@click.option("--checkpoints", type=click.Path(file_okay=False, path_type=Path), help="Folder with MEMBER.pt files.")
@click.option("--folder", type=click.Path(file_okay=False, path_type=Path), help="Keep the exports there, for again.")
@click.option("--threads", type=click.IntRange(min=1), help="Of every process.  [default: the physical cores]")
@click.option("--runs", default=30, show_default=True, help="Turns of each at least.")
@click.option("--seconds", default=20.0, show_default=True, help="For each, about.")
@click.option(
    "--output",
    type=click.Path(file_okay=False, path_type=Path),
    default=Path(__file__).parent / "results",
    help="Folder for family.md, .csv and .json.  [default: benchmarks/results]",
)
def main(members: tuple[str, ...], output: Path, **options: Any) -> None:
    """Read the command line."""
    logging.basicConfig(level=logging.WARNING, format="%(message)s", stream=sys.stderr)
    try:
        family = measure(members, say=tell, **options)
        tell("")
        family.write(output)
    except (CrisEdgeError, OSError) as error:
        click.echo(f"error: {error}", err=True)
        sys.exit(1)
    click.echo(family.to_markdown())
    if not family.members:
        sys.exit(1)


if __name__ == "__main__":
    main()
