from __future__ import annotations

import dataclasses
import json
import re
from pathlib import Path

import pytest

from cris_edge.errors import CheckpointError, CrisEdgeError, OptionError
from training.config import GROUPS, RunConfig, override
from training.recipes import RECIPES, recipe
from training.schedule import Schedule
from training.train import configure, main, parser


def test_the_default_recipe_is_that_of_the_paper() -> None:
    run = recipe("r50")
    assert run == RunConfig(name="r50")
    architecture, optimizer, loop = run.architecture, run.optimizer, run.loop
    assert (architecture.input_size, architecture.word_len, architecture.decoder_layers) == (416, 17, 3)
    assert (loop.batch_size, loop.epochs, loop.threshold) == (64, 50, 0.35)
    assert (optimizer.optimizer, optimizer.learning_rate, optimizer.backbone_scale) == ("adam", 1e-4, 0.1)
    assert (optimizer.schedule, optimizer.milestones, optimizer.decay) == ("multistep", (35.0,), 0.1)
    assert (optimizer.foreground_weight, optimizer.dice_weight) == (1.0, 0.0)
    schedule = Schedule(run, examples=6400)
    assert schedule.steps == 5000
    assert [schedule.factor(step) for step in (0, 3499, 3500, 4999)] == [1, 1, 0.1, 0.1]


@pytest.mark.parametrize("name", sorted(RECIPES))
def test_every_recipe_round_trips_through_json(name: str, tmp_path: Path) -> None:
    run = recipe(name)
    path = tmp_path / "config.json"
    path.write_text(json.dumps(run.to_dict()))
    assert RunConfig.read(path) == run
    assert run.name == name


def test_every_row_of_the_ablation_has_a_recipe() -> None:
    rows = {(recipe(n).architecture.contrastive, recipe(n).architecture.decoder_layers) for n in RECIPES}
    assert {(contrastive, layers) for contrastive in (True, False) for layers in range(5)} <= rows


def test_every_field_is_documented_and_has_its_own_option() -> None:
    names = [field.name for kind in GROUPS.values() for field in dataclasses.fields(kind)]
    assert len(names) == len(set(names))
    text = " ".join(parser().format_help().split())
    for group, kind in GROUPS.items():
        for field in dataclasses.fields(kind):
            assert "--" + field.name.replace("_", "-") in text
            if group != "architecture":  # documented where it is defined
                assert len(field.metadata["doc"]) > 10, field.name


def test_options_override_fields_of_every_group() -> None:
    arguments = (
        "--recipe r50 --output x --word-len 22 --train a.jsonl --learning-rate 3e-5 --milestones 10,20 --steps 7"
    )
    arguments += " --compile yes --sizes 128,160 --val none --init w.pth --vision-layers 1,1,2,1"
    run, options = configure(arguments.split())
    assert (run.architecture.word_len, run.architecture.vision_layers) == (22, (1, 1, 2, 1))
    assert (run.data.train, run.data.val, run.start.init) == ("a.jsonl", None, "w.pth")
    assert (run.optimizer.learning_rate, run.optimizer.milestones) == (3e-5, (10.0, 20.0))
    assert (run.loop.steps, run.loop.compile, run.loop.sizes) == (7, True, (128, 160))
    assert options.output == Path("x")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"learning_rat": 1}, "did you mean 'learning_rate'"),
        ({"learning_rate": "fast"}, "--learning-rate is 'fast', but it takes float"),
        ({"learning_rate": -1}, "--learning-rate is -1.0, but it must be above 0"),
        ({"batch_size": 2.5}, "--batch-size is 2.5, but it takes int"),
        ({"compile": "perhaps"}, "--compile is 'perhaps', but it takes bool"),
        ({"sizes": "128,x"}, "--sizes is '128,x', but it takes comma-separated ints"),
        ({"sizes": (100,)}, "multiple of 32"),
        ({"size_shares": (0.5,)}, "1 values for 0 --sizes"),
        ({"optimizer": "sgd"}, "one of adam, adamw"),
        ({"ema_decay": 1.0}, "--ema-decay is 1.0"),
        ({"accumulation": 3}, "not divisible by --accumulation 3"),
    ],
)
def test_invalid_values_are_reported_by_name(changes: dict[str, object], message: str) -> None:
    with pytest.raises(OptionError, match=message):
        override(RunConfig(), changes)


def test_unknown_groups_fields_and_recipes_are_rejected(tmp_path: Path) -> None:
    with pytest.raises(OptionError, match="did you mean 'loop'"):
        RunConfig.from_dict({"lop": {}})
    with pytest.raises(OptionError, match="'batchsize' is not a field of the loop"):
        RunConfig.from_dict({"loop": {"batchsize": 3}})
    with pytest.raises(OptionError, match="Unknown recipe 'r51'"):
        recipe("r51")
    with pytest.raises(CheckpointError, match="input_size"):
        override(RunConfig(), {"input_size": 100})
    for text in ("[]", "{", ""):
        (tmp_path / "bad.json").write_text(text)
        with pytest.raises(CrisEdgeError, match=r"bad\.json"):
            RunConfig.read(tmp_path / "bad.json")
    with pytest.raises(OptionError, match=r"absent\.json"):
        RunConfig.read(tmp_path / "absent.json")


def test_command_line_errors_are_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["--output", str(tmp_path / "run"), "--device", "cpu"]
    assert main(["--recipe", "r50", *arguments]) == 1
    assert "--train is missing" in capsys.readouterr().err
    assert main(["--recipe", "nano", "--train", "absent.jsonl", *arguments]) == 1
    assert "absent.jsonl does not exist" in capsys.readouterr().err
    assert main(["--recipe", "nano", "--train", "scenes:nowhere", *arguments]) == 1
    assert "scenes:SPLIT:LENGTH:SEED" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()
    with pytest.raises(SystemExit) as exit_:
        main(["--recipe", "r50", "--learning-rat", "1", *arguments])
    assert exit_.value.code == 2


def test_cosine_warms_up_and_ends_at_its_final_scale() -> None:
    run = override(RunConfig(), {"schedule": "cosine", "warmup_steps": 10, "steps": 110, "final_scale": 0.1})
    schedule = Schedule(run, examples=1000)
    assert schedule.factor(0) == 0.1 and schedule.factor(9) == schedule.factor(10) == 1
    assert schedule.factor(60) == pytest.approx(0.55)
    assert schedule.factor(110) == pytest.approx(0.1)


def test_input_sizes_change_by_their_shares() -> None:
    run = override(RunConfig(), {"sizes": (96, 160), "size_shares": (0.7, 0.3), "steps": 10})
    assert [Schedule(run, 100).size_at(step) for step in range(11)] == [96] * 7 + [160] * 4
    assert Schedule(RunConfig(), 100).size_at(3) == 416


def test_a_restart_leaves_the_cosine_before_it_unchanged() -> None:
    changes = {"schedule": "cosine", "warmup_steps": 10, "final_scale": 0.1, "sizes": "64,96"}
    one = Schedule(override(RunConfig(), {**changes, "steps": 110, "size_shares": "40,70"}), examples=1000)
    again = {"steps": 210, "size_shares": "40,170", "restarts": "110", "restart_scale": 0.5}
    two = Schedule(override(RunConfig(), {**changes, **again}), examples=1000)
    for step in range(110):
        assert two.factor(step) == one.factor(step) and two.size_at(step) == one.size_at(step)
    assert two.factor(110) == pytest.approx(0.05) and two.factor(119) == two.factor(120) == 0.5
    assert two.factor(165) == pytest.approx(0.3) and two.factor(209) == pytest.approx(0.1, abs=0.001)
    with pytest.raises(OptionError, match="--restarts needs --schedule cosine"):
        override(RunConfig(), {"restarts": "3"})


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--device", "cuda:99"], r"--device 'cuda:99' is not available to PyTorch .* on this machine"),
        (["--device", "abacus"], r"--device 'abacus' is not available"),
        (["--workers", "99999"], r"--workers is 99999; expected at most \d+ processes on \d+ cores"),
        (["--decoder-layers=-1"], r"decoder_layers is -1 and dropout"),
        (["--dropout", "1"], r"and dropout 1\.0"),
        (["--vision-layers", "1,1"], r"vision_layers is \[1, 1\]; .* four stages"),
        (["--vision-layers", "1,1,0,1"], r"vision_layers is \[1, 1, 0, 1\]"),
        (["--decoder-heads", "0"], r"decoder_heads is 0; it must be 1 or more"),
        (["--text-layers", "0"], r"text_layers is 0"),
        (["--restarts=-5"], r"--restarts has -5"),
        (["--train", "."], r"the data file \. is a folder"),
    ],
)
def test_invalid_options_are_reported_before_anything_is_written(
    options: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    common = ["--recipe", "nano-scenes", "--steps", "1", "--output", str(tmp_path / "run")]
    given = options if "--device" in options else [*options, "--device", "cpu"]
    assert main([*common, *given]) == 1
    assert re.search(message, capsys.readouterr().err)
    assert not (tmp_path / "run").exists()


def test_a_file_at_the_output_folder_is_reported(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "run").write_text("mine")
    assert main(["--recipe", "nano-scenes", "--steps", "1", "--device", "cpu", "--output", str(tmp_path / "run")]) == 1
    assert "run' cannot be written: File exists" in capsys.readouterr().err
    assert (tmp_path / "run").read_text() == "mine"
