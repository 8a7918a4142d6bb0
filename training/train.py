"""``python -m training.train --recipe tiny-scenes --output runs/tiny``: train a network; ``torchrun`` works too."""

from __future__ import annotations

import argparse
import dataclasses
import logging
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

# OpenMP threads spin while they wait, which makes training several times slower as soon as anything else runs on the
# machine, such as a loader process. PyTorch reads the variable when it is imported.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import torch

from cris_edge.errors import CrisEdgeError, OptionError
from training.allocator import keep_memory
from training.checkpoint import FORMAT, infer_architecture, public_state, read_checkpoint
from training.config import GROUPS, RunConfig, option, override
from training.distributed import join, leave
from training.model import Architecture
from training.recipes import RECIPES, recipe

logger = logging.getLogger("cris_edge.training")


def parser() -> argparse.ArgumentParser:
    """Return the command line: options of the command, then every field of the run."""
    result = argparse.ArgumentParser(
        prog="python -m training.train",
        allow_abbrev=False,
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    result.add_argument("--recipe", required=True, help=f"path of a config.json, or one of {', '.join(RECIPES)}")
    result.add_argument("--output", required=True, type=Path, help="folder of the run")
    result.add_argument(
        "--resume",
        default="never",
        metavar="auto|never|FILE",
        help="auto: continue from the checkpoint in OUTPUT if there is one; FILE: from that checkpoint",
    )
    result.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N")
    for group, kind in GROUPS.items():
        section = result.add_argument_group(group)
        for item in dataclasses.fields(kind):
            doc = item.metadata.get("doc", item.name.replace("_", " ")).replace("%", "%%")
            section.add_argument(
                option(item.name), metavar="VALUE", default=argparse.SUPPRESS, help=f"{doc} (default: {item.default})"
            )
    return result


def configure(arguments: Sequence[str] | None = None) -> tuple[RunConfig, argparse.Namespace]:
    """Parse the command line into a run and the options of the command.

    Raises:
        OptionError: The recipe, the name of a field or a value is invalid.
    """
    options = parser().parse_args(arguments)
    run = RunConfig.read(Path(options.recipe)) if options.recipe.endswith(".json") else recipe(options.recipe)
    own = {"recipe", "output", "resume", "device"}
    changes: dict[str, Any] = {name: value for name, value in vars(options).items() if name not in own}
    if options.recipe == "finetune":
        if not changes.get("init"):
            raise OptionError("--init is missing; the recipe finetune needs a CRIS checkpoint to start from.")
        run = dataclasses.replace(run, architecture=architecture_of(Path(changes["init"])))
    return override(run, changes), options


def architecture_of(path: Path) -> Architecture:
    """Return the architecture of any CRIS checkpoint.

    Raises:
        CheckpointError: The file is not a CRIS checkpoint.
    """
    content = read_checkpoint(path)
    if content.get("format") == FORMAT:
        return Architecture.from_dict(content["architecture"])
    return infer_architecture(public_state(content, path), path, {})


def main(arguments: Sequence[str] | None = None) -> int:
    """Train; return the exit status."""
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    try:
        config, options = configure(arguments)
        if config.loop.threads:
            torch.set_num_threads(config.loop.threads)
        processes = join(options.device)
        if processes.device.type == "cpu":
            keep_memory()
        try:
            from training.engine import Trainer

            Trainer(config, options.output, processes, resume=options.resume).fit()
        finally:
            leave()
    except (CrisEdgeError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("Stopped; continue with --resume auto.", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
