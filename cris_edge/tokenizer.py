"""CLIP's byte-pair encoding of sentences.

What the reference implementation does to a sentence (CLIP, https://github.com/openai/CLIP, `clip/simple_tokenizer.py`):
text fixing by `ftfy`, HTML entities undone twice, white space collapsed, lower case, split into words, byte-pair
encoding, a start and an end token around it, zeros up to the length. One difference, on purpose: a user who types
``<|endoftext|>`` gets the tokens of these characters, not the token that ends a sentence.
"""

from __future__ import annotations

import html
import re
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from cris_edge.errors import BundleError, OptionError, PromptError

if TYPE_CHECKING:
    import tokenizers

START_TOKEN = "<|startoftext|>"
END_TOKEN = "<|endoftext|>"
MIN_LENGTH = 3  # start, one token, end
MAX_CHARACTERS = 10_000  # far more than any length can hold; bounds the time that a hostile text takes

_DEFAULT = Path(__file__).parent / "models" / "default" / "tokenizer.json"
_SPACES = re.compile(r"\s+")
# Printable ASCII without the sign that starts an HTML entity: `ftfy` and `html.unescape` leave it as it is.
_PLAIN = re.compile(r"[\t\n\r\x20-\x25\x27-\x7e]*")


class PromptWarning(UserWarning):
    """A sentence did not fit and was cut."""


class Tokenizer:
    """Sentences -> token ids.

    Safe to share between threads, and after `fork`.

    Args:
        path: a `tokenizer.json`; by default that of the embedded model, which is the same in every bundle.

    Attributes:
        start: id of the token that starts a sentence.
        end: id of the token that ends it, the largest there is.
        vocabulary: number of tokens.

    Raises:
        BundleError: the file is missing, or is not CLIP's tokenizer.
    """

    def __init__(self, path: str | Path | None = None) -> None:
        file = Path(path) if path is not None else _DEFAULT
        self._encoder = _load(file)
        start, end = self._encoder.token_to_id(START_TOKEN), self._encoder.token_to_id(END_TOKEN)
        if start is None or end is None:
            raise BundleError(
                f"the tokenizer file {str(file)!r} is not CLIP's: no {START_TOKEN} or no {END_TOKEN} in it"
            )
        self.start = start
        self.end = end
        self.vocabulary = self._encoder.get_vocab_size()

    def __call__(self, texts: str | Sequence[str], length: int = 17) -> NDArray[np.int64]:
        """Encodes one sentence or several.

        Args:
            texts: a sentence, or a sequence of sentences.
            length: tokens a sentence, start and end included: 17 for RefCOCO and RefCOCO+, 22 for G-Ref, 77 for CLIP.

        Returns:
            (N, length) int64: start, the sentence, end, zeros. A sentence that is too long loses its last words, with a
            `PromptWarning` that says which.

        Raises:
            PromptError: a sentence is not `str`, or nothing is left of it once white space and control characters go.
            OptionError: `length` is not a whole number from 3 up.
        """
        if isinstance(length, bool) or not isinstance(length, (int, np.integer)) or length < MIN_LENGTH:
            raise OptionError(f"the token length is {length!r}, expected a whole number from {MIN_LENGTH} up")
        sentences = [texts] if isinstance(texts, str) else texts
        if not isinstance(sentences, Sequence) or isinstance(sentences, (bytes, bytearray, memoryview)):
            raise PromptError(f"a sentence is text, not {type(texts).__name__}; give a str or a list of them")
        if not sentences:
            raise PromptError("there are no sentences, expected at least one")
        tokens = np.zeros((len(sentences), length), np.int64)
        for row, sentence in zip(tokens, sentences, strict=True):
            ids, dropped = self._encode(sentence, length - 2)
            if dropped:
                warnings.warn(
                    f"the sentence {_short(sentence)!r} is longer than the {length} tokens that the model reads, "
                    f"and {_short(dropped)!r} was cut off its end",
                    PromptWarning,
                    stacklevel=2,
                )
            row[0] = self.start
            row[1 : len(ids) + 1] = ids
            row[len(ids) + 1] = self.end
        return tokens

    def _encode(self, sentence: object, room: int) -> tuple[list[int], str]:
        """The ids that fit into `room`, and the text that does not."""
        if not isinstance(sentence, str):
            raise PromptError(f"a sentence is text, not {type(sentence).__name__}; give a str")
        sentence = sentence.lstrip(" \t\r\n")
        text = clean(sentence[:MAX_CHARACTERS])
        encoding = self._encoder.encode(text, add_special_tokens=False)
        ids = encoding.ids
        if not ids:
            raise PromptError('the sentence is empty: say what to find, for instance "the man in the red shirt"')
        if len(ids) <= room:
            return ids, sentence[MAX_CHARACTERS:]
        return ids[:room], text[encoding.offsets[room][0] :]


def clean(text: str) -> str:
    """What CLIP does to a text before it is split into words: fixed, unescaped, one space between words, lower case."""
    if not _PLAIN.fullmatch(text):
        import ftfy  # takes 50 ms to import, and most sentences do without

        text = html.unescape(html.unescape(ftfy.fix_text(text)))
    return _SPACES.sub(" ", text).strip().lower()


def _load(path: Path) -> tokenizers.Tokenizer:
    import tokenizers

    try:
        encoder = tokenizers.Tokenizer.from_str(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise BundleError(f"there is no tokenizer file {str(path)!r}: the bundle is incomplete") from error
    except Exception as error:  # the library raises bare Exception
        raise BundleError(
            f"the tokenizer file {str(path)!r} cannot be used ({type(error).__name__}: {error})"
        ) from error
    # `clean` does what the file's normalization does, and more, exactly as the reference does it.
    encoder.normalizer = tokenizers.normalizers.Sequence([])
    return encoder


def _short(text: str) -> str:
    return text if len(text) <= 60 else text[:59] + "…"
