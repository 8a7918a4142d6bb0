"""Results as JSON Lines, written as they come, and what is made of them: a run that continues, a COCO file."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, BinaryIO

from cris_edge import __version__
from cris_edge.errors import InputError
from cris_edge.image.coco import annotation


class Rows:
    """A file of results, one JSON object in each line.

    A line is written at once. When the file is opened again it is cut back to its last whole source, because a killed
    run may leave a part of one.

    Args:
        path: The file.
        resume: Whether to keep what is there.

    Raises:
        InputError: The file cannot be written, or holds something else.
    """

    def __init__(self, path: Path, *, resume: bool = False) -> None:
        self.path = path
        self.done: set[tuple[str, str]] = set()
        try:
            self._file: BinaryIO = path.open("r+b" if resume and path.exists() else "w+b")
        except OSError as error:
            raise InputError(f"{path} cannot be written: {error.strerror or error}.") from error
        if resume:
            try:
                self._keep_whole_lines()
            except BaseException:
                self._file.close()
                raise

    def __enter__(self) -> Rows:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def add(self, rows: Iterable[Mapping[str, Any]]) -> None:
        """Append the rows of one source, all of them at once."""
        text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        try:
            self._file.write(text.encode(errors="surrogateescape"))
            self._file.flush()
        except OSError as error:
            raise InputError(f"{self.path} cannot be written: {error.strerror or error}.") from error

    def _keep_whole_lines(self) -> None:
        """Read what is there, and cut off what a killed run left incomplete: a line, or the rows of a video."""
        end = whole = 0  # of the lines, and of the sources
        missing: dict[tuple[str, str], int] = {}
        for line in self._file:
            try:
                row = json.loads(line)
                pair = (row["source"], row["prompt"])
            except (ValueError, KeyError, TypeError) as error:
                if line.endswith(b"\n"):
                    message = f"{self.path} holds a line that is not a result; choose another folder."
                    raise InputError(message) from error
                break
            if not line.endswith(b"\n"):
                break
            end += len(line)
            if "frames" in row:  # the number of rows of this video and prompt
                missing[pair] = missing.get(pair, row["frames"]) - 1
                if missing[pair] == 0:
                    del missing[pair]
                    self.done.add(pair)
            else:
                self.done.add(pair)
            whole = whole if missing else end
        self.done -= set(missing)
        self._file.seek(whole)
        self._file.truncate()


def read_rows(path: Path) -> Iterator[dict[str, Any]]:
    """Yield the rows of a file."""
    with path.open(encoding="utf-8", errors="surrogateescape") as lines:
        for line in lines:
            yield json.loads(line)


def write_coco(rows: Path, target: Path, prompts: Sequence[str]) -> None:
    """Write results as a COCO data set: prompts are categories, masks are RLE, frames of a video are images.

    Memory stays bounded: annotations go from file to file.

    Args:
        rows: A file of rows.
        target: The JSON file to write.
        prompts: The categories, in order; ids begin at 1.
    """
    categories = {prompt: number for number, prompt in enumerate(prompts, 1)}
    images: dict[str, int] = {}
    temporary = target.with_name(f".{target.name}.{os.urandom(4).hex()}")
    listed = temporary.with_name(f"{temporary.name}-images")
    try:
        with temporary.open("w", encoding="utf-8") as file, listed.open("w", encoding="utf-8") as image_file:
            head = {"info": {"description": "Predictions", "version": f"cris-edge {__version__}"}, "licenses": []}
            kinds = [{"id": number, "name": prompt, "supercategory": ""} for prompt, number in categories.items()]
            file.write(json.dumps({**head, "categories": kinds})[:-1] + ', "annotations": [')
            count = 0
            for row in read_rows(rows):
                name = row["source"] if "frame" not in row else f"{row['source']}#{row['frame']}"
                height, width = row["size"]
                if name not in images:
                    image_file.write(",\n" if images else "\n")
                    images[name] = len(images) + 1
                    image = {"id": images[name], "file_name": name, "height": height, "width": width}
                    image_file.write(json.dumps(image))
                if row["box"] is None or row["prompt"] not in categories:
                    continue
                count += 1
                entry = annotation(row, count, images[name], categories[row["prompt"]])
                file.write((",\n" if count > 1 else "\n") + json.dumps(entry))
            file.write('],\n"images": [')
            image_file.close()
            with listed.open(encoding="utf-8") as lines:
                for line in lines:
                    file.write(line)
            file.write("]}\n")
        os.replace(temporary, target)
    except OSError as error:
        raise InputError(f"{target} cannot be written: {error.strerror or error}.") from error
    finally:
        for leftover in (temporary, listed):
            with suppress(OSError):
                leftover.unlink()
