"""Zero embeddings for tokens that do not occur in the training data."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from click.testing import CliRunner

from cris_edge.errors import CheckpointError
from cris_edge.tokenizer import Tokenizer
from training.checkpoint import load_model, read_checkpoint, recorded, save_model, write_atomically
from training.data.samples import open_source
from training.model import CRIS, Architecture
from training.vocabulary import main, seen_tokens

SMALL = Architecture(
    input_size=64,
    vision_layers=(1, 1, 1, 1),
    vision_width=8,
    image_resolution=64,
    embed_dim=16,
    context_length=20,
    text_width=16,
    text_layers=1,
    decoder_layers=1,
    decoder_heads=4,
    ffn_dim=32,
)
DATA = "scenes:train:4:3"


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    save_model(tmp_path / "trained.pt", CRIS(SMALL), recipe="a test", mask_target="area")
    return tmp_path / "trained.pt"


def test_known_prompts_give_the_same_logits(checkpoint: Path, tmp_path: Path) -> None:
    output = tmp_path / "shipped.pt"
    arguments = ["--checkpoint", str(checkpoint), "--data", DATA, "--output", str(output)]
    result = CliRunner().invoke(main, arguments)
    assert result.exit_code == 0, result.output
    assert recorded(read_checkpoint(output)) == {"recipe": "a test", "mask_target": "area"}
    before, after = load_model(checkpoint), load_model(output)
    known = open_source(DATA, by_image=True).load(0, 128).sentences[0]
    image = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        for sentence, same in ((known, True), ("xylophone quartz", False)):
            tokens = torch.from_numpy(Tokenizer()(sentence, length=17))
            assert torch.equal(before(image, tokens), after(image, tokens)) is same
    rows = after.backbone.token_embedding.weight
    seen = seen_tokens(open_source(DATA, by_image=True), 17)
    zero = (rows == 0).all(dim=1)
    assert int(zero.sum()) == len(rows) - len(seen)
    assert not zero[sorted(seen)].any()


def test_the_compact_form_is_smaller_and_equivalent(checkpoint: Path, tmp_path: Path) -> None:
    plain, compact = tmp_path / "plain.pt", tmp_path / "compact.pt"
    for output, options in ((plain, []), (compact, ["--compact"])):
        arguments = ["--checkpoint", str(checkpoint), "--data", DATA, "--output", str(output), *options]
        assert CliRunner().invoke(main, arguments).exit_code == 0
    assert compact.stat().st_size < 0.4 * plain.stat().st_size
    assert recorded(read_checkpoint(compact)) == recorded(read_checkpoint(plain))
    for mine, theirs in zip(load_model(compact).parameters(), load_model(plain).parameters(), strict=True):
        assert mine.dtype == torch.float32
        torch.testing.assert_close(mine, theirs, atol=1e-6, rtol=1e-3)


@pytest.mark.parametrize("ids", [None, torch.arange(3), torch.full((10_000,), 49408)])
def test_invalid_row_ids_are_rejected(checkpoint: Path, tmp_path: Path, ids: torch.Tensor | None) -> None:
    save_model(tmp_path / "compact.pt", load_model(checkpoint), compact=True)
    content = read_checkpoint(tmp_path / "compact.pt")
    if ids is not None and len(ids) > 3:
        ids = ids[: len(content["token_ids"])]
    write_atomically(tmp_path / "broken.pt", {**content, "token_ids": ids})
    with pytest.raises(CheckpointError, match=r"rows of the token table.*get the file again"):
        load_model(tmp_path / "broken.pt")


def test_errors_are_one_line_and_come_first(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main(["--checkpoint", str(tmp_path / "no.pt"), "--data", DATA, "--output", "x"], standalone_mode=False)
    assert stop.value.code == 1
    assert "does not exist" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main(["--checkpoint", "no.pt", "--data", DATA, "--output", str(tmp_path / "a" / "b.pt")], standalone_mode=False)
    assert f"the folder {tmp_path / 'a'} does not exist" in capsys.readouterr().err
