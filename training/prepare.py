"""``python -m training.prepare``: public data sets to labelled JSON Lines, and checks of a data folder.

From the REFER distribution, with COCO's train2014 images:

    python -m training.prepare --refs "refer/refcoco/refs(unc).p" --images coco/train2014 --output data/refcoco

From the reference implementation's own files:

    python -m training.prepare --anns anns/refcoco --masks masks/refcoco --images coco/train2014 --output data/refcoco

What is missing or broken in a folder or a file; with --output, the sound samples are written there:

    python -m training.prepare --check data/refcoco
"""

from __future__ import annotations

import argparse
import logging
import re
import sys
from collections.abc import Sequence
from pathlib import Path

from cris_edge.errors import CrisEdgeError, DataError, OptionError
from training.data.check import Findings, check_file, write_sound
from training.data.refer import compare_with_published, read_anns, read_refer, write_samples

logger = logging.getLogger("cris_edge.training")

_SPLIT_BY = re.compile(r"refs\((\w+)\)\.p$")


def parser() -> argparse.ArgumentParser:
    """Return the command line."""
    result = argparse.ArgumentParser(
        prog="python -m training.prepare",
        description=__doc__,
        allow_abbrev=False,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    what = result.add_mutually_exclusive_group(required=True)
    what.add_argument("--refs", type=Path, help="REFER's refs(unc).p, refs(umd).p or refs(google).p")
    what.add_argument("--anns", type=Path, help="the reference's folder anns/DATASET")
    what.add_argument("--check", type=Path, help="a JSON Lines file, or a folder of them")
    result.add_argument("--instances", type=Path, help="COCO's instances (default: instances.json beside --refs)")
    result.add_argument("--masks", type=Path, help="the reference's folder masks/DATASET, with --anns")
    result.add_argument("--images", type=Path, help="the folder train2014")
    result.add_argument(
        "--output", type=Path, help="the folder to write SPLIT.jsonl into; with --check, the sound samples"
    )
    return result


def main(arguments: Sequence[str] | None = None) -> int:
    """Prepare or check; return the exit status."""
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    options = parser().parse_args(arguments)
    try:
        return _check(options.check, options.output) if options.check else _prepare(options)
    except (CrisEdgeError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1


def _prepare(options: argparse.Namespace) -> int:
    if options.images is None or options.output is None:
        raise OptionError("--images and --output are missing; give the folder of the photos and one to write into.")
    if not options.images.is_dir():
        raise DataError(f"the folder of images {options.images} does not exist.")
    if options.refs is not None:
        named = _SPLIT_BY.search(options.refs.name)
        dataset, by = options.refs.resolve().parent.name, named.group(1) if named else ""
        references = read_refer(options.refs, options.instances or options.refs.parent / "instances.json")
    else:
        if options.masks is None:
            raise OptionError("--masks is missing; with --anns give the reference's folder masks/DATASET.")
        dataset = options.anns.resolve().name
        references = read_anns(options.anns, options.masks)
        by = "umd" if dataset == "refcocog" else "unc"
    counts = write_samples(references, options.images, options.output)
    for split, count in counts.items():
        left_out = count["without sentences"]
        note = f", {left_out} without a sentence left out" if left_out else ""
        print(f"{split}: {count['references']} objects, {count['sentences']} sentences{note}")
    differences = list(compare_with_published(dataset, by, counts))
    for difference in differences:
        print(f"warning: {difference}", file=sys.stderr)
    absent = len({r.image for r in references if not (options.images / r.image).is_file()})
    if absent:
        print(f"warning: {absent} of the images are not in {options.images}", file=sys.stderr)
    return 0


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
