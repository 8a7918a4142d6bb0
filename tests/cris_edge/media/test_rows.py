from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cris_edge.errors import InputError
from cris_edge.media.rows import Rows, read_rows, write_coco
from cris_edge.result import Segmentation


def row(source: str, prompt: str, **more: Any) -> dict[str, Any]:
    probability = np.zeros((6, 8), np.float32)
    probability[1:3, 2:5] = 0.9 if prompt != "nothing" else 0
    result = Segmentation(probability, np.zeros((6, 8, 3), np.uint8), prompt, threshold=0.5)
    return {"source": source, **result.to_dict(), **more}


def test_rows_are_appended_and_read_again(tmp_path: Path) -> None:
    with Rows(tmp_path / "rows") as rows:
        rows.add([row("a.png", "red"), row("a.png", "ü日")])
    with Rows(tmp_path / "rows", resume=True) as rows:
        assert rows.done == {("a.png", "red"), ("a.png", "ü日")}
        rows.add([row("b.png", "red")])
    assert [one["source"] for one in read_rows(tmp_path / "rows")] == ["a.png", "a.png", "b.png"]


def test_without_resume_the_file_begins_again(tmp_path: Path) -> None:
    with Rows(tmp_path / "rows") as rows:
        rows.add([row("a.png", "red")])
    with Rows(tmp_path / "rows") as rows:
        assert rows.done == set()
    assert (tmp_path / "rows").read_bytes() == b""


@given(cut=st.integers(0, 10_000))
@settings(max_examples=60, deadline=None)
def test_a_file_cut_anywhere_continues_with_whole_sources(cut: int, tmp_path_factory: pytest.TempPathFactory) -> None:
    path = tmp_path_factory.mktemp("rows") / "rows"
    with Rows(path) as rows:
        rows.add([row("a.png", "red"), row("a.png", "blue")])
        for frame in range(3):
            rows.add([row("clip.mp4", "red", frame=frame, frames=3)])
        rows.add([row("b.png", "red")])
    data = path.read_bytes()
    path.write_bytes(data[: min(cut, len(data))])
    with Rows(path, resume=True) as rows:
        kept = list(read_rows(path))
        for source, prompt in rows.done:
            count = sum(one["source"] == source and one["prompt"] == prompt for one in kept)
            assert count == (3 if source == "clip.mp4" else 1)
        assert len(kept) == sum(3 if source == "clip.mp4" else 1 for source, _ in rows.done)
    assert data.startswith(path.read_bytes())


def test_a_file_of_something_else_is_refused_and_left_alone(tmp_path: Path) -> None:
    (tmp_path / "rows").write_text('{"other": 1}\n')
    with pytest.raises(InputError, match="not a result"):
        Rows(tmp_path / "rows", resume=True)
    assert (tmp_path / "rows").read_text() == '{"other": 1}\n'


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # of pycocotools itself
def test_coco_is_read_by_pycocotools(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    coco = pytest.importorskip("pycocotools.coco", reason="the format is checked with pycocotools")
    with Rows(tmp_path / "rows") as rows:
        rows.add([row("a.png", "red"), row("a.png", "nothing"), row("clip.mp4", "red", frame=4, frames=1)])
    write_coco(tmp_path / "rows", tmp_path / "coco.json", ["red", "nothing"])
    data = coco.COCO(str(tmp_path / "coco.json"))
    capsys.readouterr()
    assert [image["file_name"] for image in data.loadImgs(data.getImgIds())] == ["a.png", "clip.mp4#4"]
    assert [kind["name"] for kind in data.loadCats(data.getCatIds())] == ["red", "nothing"]
    annotations = data.loadAnns(data.getAnnIds())
    assert [annotation["image_id"] for annotation in annotations] == [1, 2]
    assert annotations[0]["bbox"] == [2, 1, 3, 2] and annotations[0]["area"] == 6
    assert data.annToMask(annotations[0])[1:3, 2:5].all() and data.annToMask(annotations[0]).sum() == 6
    assert sorted(path.name for path in tmp_path.iterdir()) == ["coco.json", "rows"]


def test_an_empty_run_is_a_valid_coco_file(tmp_path: Path) -> None:
    with Rows(tmp_path / "rows"):
        pass
    write_coco(tmp_path / "rows", tmp_path / "coco.json", [])
    document = json.loads((tmp_path / "coco.json").read_text())
    assert document["images"] == document["annotations"] == document["categories"] == []
