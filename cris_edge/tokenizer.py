"""CLIP's byte-pair encoding.

Follows the reference implementation (https://github.com/openai/CLIP, `clip/simple_tokenizer.py`): `ftfy` text fixing,
HTML entities unescaped twice, whitespace collapsed, lower case, split into words, byte-pair encoding, start and end
tokens, zero padding. One intended difference: ``<|endoftext|>`` in a prompt is encoded as ordinary characters, not as
the end token.
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
MAX_CHARACTERS = 10_000  # far more than fits any token length; bounds the time spent on hostile input

_DEFAULT = Path(__file__).parent / "models" / "default" / "tokenizer.json"
_SPACES = re.compile(r"\s+")
# Printable ASCII without "&": `ftfy` and `html.unescape` leave it unchanged.
_PLAIN = re.compile(r"[\t\n\r\x20-\x25\x27-\x7e]*")


class PromptWarning(UserWarning):
    """A prompt exceeded the token length and was truncated."""


class Tokenizer:
    """Convert prompts to token ids.

    Safe to share between threads, and after `fork`.

    Args:
        path: A `tokenizer.json`; by default that of the default model, which is the same in every bundle.

    Attributes:
        start: Id of the start token.
        end: Id of the end token, the largest id.
        vocabulary: Number of tokens.

    Raises:
        BundleError: The file is missing or is not CLIP's tokenizer.
    """

    def __init__(self, path: str | Path | None = None) -> None:
        file = Path(path) if path is not None else _DEFAULT
        self._encoder = _load(file)
        start, end = self._encoder.token_to_id(START_TOKEN), self._encoder.token_to_id(END_TOKEN)
        if start is None or end is None:
            raise BundleError(f"The tokenizer file {str(file)!r} is not CLIP's: it lacks {START_TOKEN} or {END_TOKEN}.")
        self.start = start
        self.end = end
        self.vocabulary = self._encoder.get_vocab_size()

    def __call__(self, texts: str | Sequence[str], length: int = 17) -> NDArray[np.int64]:
        """Encode one prompt or several.

        Args:
            texts: A prompt, or a sequence of prompts.
            length: Tokens per prompt, start and end included: 17 for RefCOCO and RefCOCO+, 22 for G-Ref, 77 for CLIP.

        Returns:
            (N, length) int64: start token, prompt, end token, zeros. A prompt that is too long is truncated, with a
            `PromptWarning`.

        Raises:
            PromptError: A prompt is not a string, or is empty apart from whitespace and control characters.
            OptionError: `length` is not an integer of at least 3.
        """
        if isinstance(length, bool) or not isinstance(length, (int, np.integer)) or length < MIN_LENGTH:
            raise OptionError(f"The token length is {length!r}; expected an integer of at least {MIN_LENGTH}.")
        prompts = [texts] if isinstance(texts, str) else texts
        if not isinstance(prompts, Sequence) or isinstance(prompts, (bytes, bytearray, memoryview)):
            raise PromptError(f"Prompts are {type(texts).__name__}; expected a str or a list of them.")
        if not prompts:
            raise PromptError("No prompt was given; expected at least one.")
        tokens = np.zeros((len(prompts), length), np.int64)
        for row, prompt in zip(tokens, prompts, strict=True):
            ids, dropped = self._encode(prompt, length - 2)
            if dropped:
                warnings.warn(
                    f"The prompt {_short(prompt)!r} exceeds the model's {length} tokens and was truncated: "
                    f"{_short(dropped)!r} was dropped.",
                    PromptWarning,
                    stacklevel=2,
                )
            row[0] = self.start
            row[1 : len(ids) + 1] = ids
            row[len(ids) + 1] = self.end
        return tokens

    def _encode(self, prompt: object, room: int) -> tuple[list[int], str]:
        """The ids that fit into `room`, and the text that does not."""
        if not isinstance(prompt, str):
            raise PromptError(f"A prompt is {type(prompt).__name__}; expected a str.")
        prompt = prompt.lstrip(" \t\r\n")
        text = clean(prompt[:MAX_CHARACTERS])
        encoding = self._encoder.encode(text, add_special_tokens=False)
        ids = encoding.ids
        if not ids:
            raise PromptError('The prompt is empty; describe what to find, such as "the man in the red shirt".')
        if len(ids) <= room:
            return ids, prompt[MAX_CHARACTERS:]
        return ids[:room], text[encoding.offsets[room][0] :]


def clean(text: str) -> str:
    """Normalize text as CLIP does before splitting it into words."""
    if not _PLAIN.fullmatch(text):
        import ftfy  # takes 50 ms to import, and most prompts do not need it

        text = html.unescape(html.unescape(ftfy.fix_text(text)))
    return _SPACES.sub(" ", text).strip().lower()


def _load(path: Path) -> tokenizers.Tokenizer:
    import tokenizers

    try:
        encoder = tokenizers.Tokenizer.from_str(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise BundleError(f"There is no tokenizer file {str(path)!r}; the bundle is incomplete.") from error
    except Exception as error:  # the library raises bare Exception
        raise BundleError(f"Cannot read the tokenizer file {str(path)!r} ({type(error).__name__}: {error}).") from error
    # `clean` normalizes exactly as the reference does; the file's own normalizer does less.
    encoder.normalizer = tokenizers.normalizers.Sequence([])
    return encoder


def _short(text: str) -> str:
    return text if len(text) <= 60 else text[:59] + "…"
