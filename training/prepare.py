"""``python -m training.prepare``: convert public data sets to labelled JSON Lines, and check data.

From the REFER distribution, with COCO's train2014 images:

    python -m training.prepare refcoco --refs "refer/refcoco/refs(unc).p" --images coco/train2014 --output data/refcoco

From the reference implementation's own files:

    python -m training.prepare refcoco --anns anns/refcoco --masks masks/refcoco --images coco/train2014 --output DIR

From gRefCOCO's files, in which a sentence may refer to several objects or to none:

    python -m training.prepare grefcoco --refs "grefcoco/grefs(unc).json" --images coco/train2014 --output data/grefcoco

List what is missing or broken in a folder or a file; with --output, write the sound samples:

    python -m training.prepare check data/refcoco
"""

from __future__ import annotations

import argparse
import logging
import re
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from cris_edge.errors import CrisEdgeError, DataError, OptionError
from training.data.check import Findings, check_file, write_sound
from training.data.refer import Reference, compare_with_published, read_anns, read_grefs, read_refer, write_samples

logger = logging.getLogger("cris_edge.training")

COMMANDS = ("refcoco", "grefcoco", "check")
_SPLIT_BY = re.compile(r"refs\((\w+)\)\.p$")


def parser() -> argparse.ArgumentParser:
    """Return the command line."""
    result = argparse.ArgumentParser(
        prog="python -m training.prepare",
        description=__doc__,
        allow_abbrev=False,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = result.add_subparsers(dest="command", metavar="COMMAND", required=True)
    refcoco = commands.add_parser("refcoco", help="RefCOCO, RefCOCO+ and RefCOCOg", allow_abbrev=False)
    what = refcoco.add_mutually_exclusive_group(required=True)
    what.add_argument("--refs", type=Path, help="REFER's refs(unc).p, refs(umd).p or refs(google).p")
    what.add_argument("--anns", type=Path, help="the reference's folder anns/DATASET")
    refcoco.add_argument("--masks", type=Path, help="the reference's folder masks/DATASET, with --anns")
    grefcoco = commands.add_parser("grefcoco", help="gRefCOCO: several objects or none", allow_abbrev=False)
    grefcoco.add_argument("--refs", type=Path, required=True, help="gRefCOCO's grefs(unc).json")
    for command in (refcoco, grefcoco):
        command.add_argument("--instances", type=Path, help="COCO's instances (default: instances.json beside --refs)")
        command.add_argument("--images", type=Path, help="the folder train2014")
        command.add_argument("--output", type=Path, help="the folder to write SPLIT.jsonl into")
    check = commands.add_parser("check", help="list what is missing or broken", allow_abbrev=False)
    check.add_argument("path", type=Path, help="a JSON Lines file, or a folder of them")
    check.add_argument("--output", type=Path, help="the folder to write the sound samples into")
    return result


def main(arguments: Sequence[str] | None = None) -> int:
    """Prepare or check; return the exit status."""
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    options = parser().parse_args(with_command(sys.argv[1:] if arguments is None else arguments))
    try:
        return _check(options.path, options.output) if options.command == "check" else _prepare(options)
    except (CrisEdgeError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1


def with_command(arguments: Sequence[str]) -> list[str]:
    """Return the arguments with their command; earlier versions had options alone, and ``--check PATH``."""
    given = list(arguments)
    if not given or given[0] in (*COMMANDS, "-h", "--help") or not given[0].startswith("-"):
        return given
    for index, argument in enumerate(given):
        if argument == "--check" or argument.startswith("--check="):
            _, equals, path = argument.partition("=")
            return ["check", *given[:index], *([path] if equals else []), *given[index + 1 :]]
    return ["refcoco", *given]


def _prepare(options: argparse.Namespace) -> int:
    if options.images is None or options.output is None:
        raise OptionError("--images and --output are missing; give the folder of the images and one to write into.")
    if not options.images.is_dir():
        raise DataError(f"the folder of images {options.images} does not exist.")
    references, dataset, by = _read(options)
    counts = write_samples(references, options.images, options.output)
    for split, count in counts.items():
        print(f"{split}: {_summary(count)}")
    for difference in compare_with_published(dataset, by, counts):
        print(f"warning: {difference}", file=sys.stderr)
    absent = len({r.image for r in references if not (options.images / r.image).is_file()})
    if absent:
        print(f"warning: {absent} of the images are not in {options.images}", file=sys.stderr)
    return 0


def _read(options: argparse.Namespace) -> tuple[list[Reference], str, str]:
    """Return the references, the name of the data set, and the author of its split."""
    if options.refs is None:
        if options.masks is None:
            raise OptionError("--masks is missing; with --anns give the reference's folder masks/DATASET.")
        dataset = options.anns.resolve().name
        return read_anns(options.anns, options.masks), dataset, "umd" if dataset == "refcocog" else "unc"
    instances = options.instances or options.refs.parent / "instances.json"
    dataset = options.refs.resolve().parent.name
    if options.command == "grefcoco":
        return read_grefs(options.refs, instances), dataset, ""
    named = _SPLIT_BY.search(options.refs.name)
    return read_refer(options.refs, instances), dataset, named.group(1) if named else ""


def _summary(count: Counter[str]) -> str:
    text = f"{count['references']} objects, {count['sentences']} sentences"
    if count["no target"]:
        text += f", {count['no target']} that match nothing"
    if count["without sentences"]:
        text += f", {count['without sentences']} without a sentence left out"
    return text


def _check(path: Path, output: Path | None) -> int:
    files = sorted(path.glob("*.jsonl")) if path.is_dir() else [path]
    if not files:
        raise DataError(f"there is no JSON Lines file in {path}; prepare the data first.")
    findings = Findings()
    for file in files:
        sound = check_file(file, findings)
        if output is not None and (output / file.name).resolve() == file.resolve():
            raise OptionError(f"--output {output} holds {file.name} itself; give another folder for the sound samples.")
        if output is not None:
            write_sound(sound, file, output / file.name)
    print(findings.report())
    return 1 if findings.problems else 0


if __name__ == "__main__":
    sys.exit(main())
