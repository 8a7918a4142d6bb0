"""CandidateNet: shapes, its deploy modules, checkpoints, and the selector's invariances."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from cris_edge.errors import CheckpointError, InputError
from training.checkpoint import is_candidates, load_model, load_network, read_checkpoint, save_model
from training.describe import describe
from training.model import CandidateArchitecture, CandidateNet
from training.model.candidates import COLOUR_FEATURES, FEATURES, Candidates
from training.model.nanodet import CLASSES
from training.model.selector import Selector, SelectorSizes, choose, presence

SMALL = CandidateArchitecture(
    input_size=64, word_len=8, candidates=6, width=32, layers=1, text_layers=1, heads=2, rows=50
)


@pytest.fixture(scope="module")
def network() -> CandidateNet:
    torch.manual_seed(0)
    model = CandidateNet(SMALL).eval()
    with torch.no_grad():
        for parameter in model.selector.parameters():
            if not parameter.any():
                parameter.normal_(0, 0.1)  # what starts at zero would hide a mistake
        model.selector.table.row.copy_(torch.arange(len(model.selector.table.row)) % 50)
        model.selector.table.vectors.normal_()
        model.selector.table.classes.uniform_()
        model.selector.table.colours.uniform_()
    return model


@pytest.fixture
def pair() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    tokens = torch.zeros(4, 8, dtype=torch.int64)
    tokens[:, :5] = torch.randint(1, 49408, (4, 5), generator=generator)
    return torch.randn(2, 3, 64, 64, generator=generator), tokens


def candidates(count: int = 6) -> Candidates:
    generator = torch.Generator().manual_seed(2)
    corners = torch.rand(1, count, 2, 2, generator=generator).sort(2).values
    return Candidates(
        torch.rand(1, count, len(CLASSES), generator=generator),
        corners.flatten(2),
        torch.tensor([1.5]),
        torch.randn(1, count, FEATURES, generator=generator),
        torch.rand(1, count, COLOUR_FEATURES, generator=generator),
        torch.ones(1, count, dtype=torch.bool),
    )


@torch.no_grad()
def test_logits_and_presence_of_several_prompts(network: CandidateNet, pair: tuple[torch.Tensor, torch.Tensor]) -> None:
    image, tokens = pair
    logits, present = network.forward_with_presence(image, tokens)
    assert logits.shape == (4, 1, 16, 16) and present.shape == (4, 1)
    alone, own = network.forward_with_presence(image[1:], tokens[3:])
    assert torch.allclose(logits[3:], alone, atol=1e-4) and torch.allclose(present[3:], own, atol=1e-4)
    assert torch.equal(network(image, tokens), logits)


@torch.no_grad()
@pytest.mark.parametrize("with_presence", [False, True])
def test_the_deploy_modules_are_the_same_function(
    network: CandidateNet, pair: tuple[torch.Tensor, torch.Tensor], with_presence: bool
) -> None:
    image, tokens = pair[0][:1], pair[1][:1]
    expected = network.forward_with_presence(image, tokens)
    modules = network.deploy(with_presence=with_presence)
    known = {"image": image, "tokens": tokens}
    for module in modules:
        found = module(*(known[name] for name in module.input_names))
        outputs = found if isinstance(found, tuple) else (found,)
        known.update(zip(module.output_names, outputs, strict=True))
    assert torch.allclose(known["logits"], expected[0], atol=1e-5)
    assert ("presence" in known) == with_presence
    if with_presence:
        assert torch.allclose(known["presence"], expected[1], atol=1e-5)


@torch.no_grad()
def test_the_deploy_modules_trace_with_static_shapes(network: CandidateNet) -> None:
    image, tokens = torch.randn(1, 3, 64, 64), torch.randint(1, 49408, (1, 8))
    known = {"image": image, "tokens": tokens}
    for module in network.deploy():
        inputs = tuple(known[name] for name in module.input_names)
        program = torch.export.export(module, inputs)
        for node in program.graph.nodes:
            value = node.meta.get("val")
            shape = getattr(value, "shape", ())
            assert all(isinstance(side, int) for side in shape), f"{node} has the shape {shape}"
        found = module(*inputs)
        known.update(zip(module.output_names, found if isinstance(found, tuple) else (found,), strict=True))


@pytest.mark.parametrize("compact", [False, True])
def test_a_checkpoint_holds_the_network(
    network: CandidateNet, pair: tuple[torch.Tensor, torch.Tensor], tmp_path: Path, compact: bool
) -> None:
    path = tmp_path / "model.pt"
    save_model(path, network, compact=compact, recipe="test")
    assert is_candidates(read_checkpoint(path))
    loaded = load_network(path)
    assert isinstance(loaded, CandidateNet) and loaded.architecture == SMALL
    for name, tensor in network.state_dict().items():
        assert torch.allclose(loaded.state_dict()[name], tensor, atol=2e-3 if compact else 0, rtol=1e-3), name
    assert load_network(path, input_size=96).architecture.input_size == 96
    with pytest.raises(CheckpointError, match="load_network"):
        load_model(path)
    with pytest.raises(CheckpointError, match="decoder_heads"):
        load_network(path, decoder_heads=4)


def test_a_checkpoint_is_described(network: CandidateNet, tmp_path: Path) -> None:
    path = tmp_path / "model.pt"
    save_model(path, network, recipe="test")
    found = describe(path)
    assert found.architecture == SMALL and not found.problems and found.backbone == "NanoDet-g"
    assert "CandidateNet" in str(found) and "6 candidates" in str(found)


def test_a_checkpoint_of_another_shape_is_refused(network: CandidateNet, tmp_path: Path) -> None:
    path = tmp_path / "model.pt"
    save_model(path, network)
    content = read_checkpoint(path)
    content["state_dict"]["boxmask.last2.weight"] = torch.zeros(2, 24, 1, 1)
    torch.save(content, path)
    with pytest.raises(CheckpointError, match=r"boxmask\.last2\.weight"):
        load_network(path)


def test_an_unknown_architecture_field_is_refused() -> None:
    assert CandidateArchitecture.from_dict(SMALL.to_dict()) == SMALL
    with pytest.raises(CheckpointError, match="colour_depth"):
        CandidateArchitecture.from_dict({**SMALL.to_dict(), "colour_depth": 3})


@pytest.mark.parametrize("change", [{"input_size": 100}, {"word_len": 2}, {"heads": 3}, {"rows": 0}])
def test_an_impossible_architecture_is_refused(change: dict[str, int]) -> None:
    with pytest.raises(CheckpointError):
        CandidateArchitecture.from_dict({**SMALL.to_dict(), **change})


def test_input_of_the_wrong_shape_is_refused(network: CandidateNet) -> None:
    with pytest.raises(InputError, match="multiple of 32"):
        network(torch.zeros(1, 3, 60, 60), torch.ones(1, 8, dtype=torch.int64))
    with pytest.raises(InputError, match="same number"):
        network(torch.zeros(2, 3, 64, 64), torch.ones(3, 8, dtype=torch.int64))


@torch.no_grad()
def test_the_order_of_candidates_and_the_length_of_padding_do_not_matter(network: CandidateNet) -> None:
    selector, boxes = network.selector, candidates()
    tokens = torch.tensor([[49406, 700, 800, 49407, 0, 0]])
    scores, none = selector(boxes, tokens)
    order = torch.tensor([3, 1, 5, 0, 2, 4])
    shuffled = Candidates(*(part if part.ndim == 1 else part[:, order] for part in boxes))
    other, other_none = selector(shuffled, tokens)
    assert torch.allclose(other, scores[:, order], atol=1e-4) and torch.allclose(other_none, none, atol=1e-4)
    longer, _ = selector(boxes, torch.cat((tokens, torch.zeros(1, 2, dtype=torch.int64)), 1))
    assert torch.allclose(longer, scores, atol=1e-4)


@torch.no_grad()
def test_an_empty_slot_changes_nothing_and_is_never_chosen(network: CandidateNet) -> None:
    selector, boxes = network.selector, candidates()
    tokens = torch.tensor([[49406, 700, 800, 49407, 0, 0]])
    fewer = Candidates(*(part if part.ndim == 1 else part[:, :4] for part in boxes))
    valid = boxes.valid.clone()
    valid[:, 4:] = False
    scores, none = selector(boxes._replace(valid=valid), tokens)
    expected, expected_none = selector(fewer, tokens)
    assert torch.allclose(scores[:, :4], expected, atol=1e-4) and torch.allclose(none, expected_none, atol=1e-4)
    assert (scores[:, 4:] < -1000).all()


@torch.no_grad()
def test_candidates_without_pixels_share_one_appearance(network: CandidateNet) -> None:
    boxes = candidates()
    unseen = boxes._replace(features=torch.zeros_like(boxes.features), colours=torch.zeros_like(boxes.colours))
    tokens = torch.tensor([[49406, 700, 800, 49407]])
    encoded = network.selector.encode_candidates(unseen)
    assert not encoded.appearance.any() and not encoded.hues.any()
    assert torch.isfinite(network.selector(unseen, tokens)[0]).all()


def test_every_parameter_of_the_selector_learns() -> None:
    torch.manual_seed(0)
    selector = Selector(SelectorSizes(width=32, heads=2, layers=1, text_layers=1, rows=50))
    selector.table.vectors.normal_()
    for parameter in selector.parameters():
        if parameter.requires_grad and not parameter.any():
            torch.nn.init.normal_(parameter, 0, 0.1)
    boxes = candidates()
    seen = torch.tensor([1.0, 1, 1, 1, 0, 0])[None, :, None]
    scores, none = selector(boxes._replace(features=boxes.features * seen), torch.tensor([[49406, 700, 49407, 0]]))
    torch.nn.functional.cross_entropy(torch.cat((scores, none), 1), torch.tensor([2])).backward()
    idle = [n for n, p in selector.named_parameters() if p.requires_grad and (p.grad is None or not p.grad.any())]
    assert not idle


def test_choose_and_presence() -> None:
    boxes = torch.rand(2, 3, 4)
    scores = torch.tensor([[0.0, 2.0, 1.0], [3.0, -1e4, 0.0]])
    assert torch.equal(choose(scores, boxes), torch.stack((boxes[0, 1], boxes[1, 0])))
    none = torch.tensor([[0.5], [-1.0]])
    share = torch.cat((scores, none), 1).softmax(1)[:, :3].sum(1, keepdim=True)
    assert torch.allclose(presence(scores, none).sigmoid(), share)
