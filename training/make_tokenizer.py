"""Write `tokenizer.json`, CLIP's byte-pair encoding, from the list of merges that was published with CLIP.

The merges (`bpe_simple_vocab_16e6.txt.gz`, MIT licence) are part of the `open_clip_torch` wheel::

    pip download --no-deps open_clip_torch
    python -m training.make_tokenizer open_clip_torch-*.whl cris_edge/models/default/tokenizer.json

The `tokenizers` library loads the result in Python, Rust, Node, Swift and C++. It has no special tokens on purpose:
prompts are untrusted text, and the start and end tokens are added by id. The output is reproducible to the byte.
"""

from __future__ import annotations

import argparse
import gzip
import json
import sys
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

MERGES_NAME = "bpe_simple_vocab_16e6.txt.gz"
MERGE_COUNT = 49_152 - 256 - 2  # CLIP uses this many of the 262,144 merges in the file
START_TOKEN = "<|startoftext|>"
END_TOKEN = "<|endoftext|>"
WORD_END = "</w>"

# English contractions, runs of letters, single digits, runs of anything else: CLIP's split, without its special tokens
WORD_PATTERN = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"


def read_merges(source: Path) -> list[str]:
    """Read CLIP's merges, most frequent first, each as ``"left right"``.

    Args:
        source: The `open_clip_torch` wheel, or `bpe_simple_vocab_16e6.txt.gz` itself.

    Raises:
        ValueError: The file does not contain the merges.
    """
    if zipfile.is_zipfile(source):
        with zipfile.ZipFile(source) as wheel:
            names = [name for name in wheel.namelist() if name.endswith("/" + MERGES_NAME)]
            if len(names) != 1:
                raise ValueError(f"{source} contains {len(names)} files named {MERGES_NAME}, expected one.")
            packed = wheel.read(names[0])
    else:
        packed = source.read_bytes()
    try:
        lines = gzip.decompress(packed).decode("utf-8").split("\n")
    except (OSError, EOFError, UnicodeDecodeError) as error:
        raise ValueError(f"{source} is neither the open_clip_torch wheel nor {MERGES_NAME}: {error}.") from error
    merges = lines[1 : MERGE_COUNT + 1]  # the first line is a comment
    if len(merges) != MERGE_COUNT or any(len(merge.split(" ")) != 2 for merge in merges):
        raise ValueError(f"{source} does not contain {MERGE_COUNT} merges of two parts each.")
    return merges


def byte_alphabet() -> list[str]:
    """The 256 characters that represent bytes, in the order of CLIP's vocabulary.

    Printable bytes come first and represent themselves; the others follow as the code points from 256 on.
    """
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    return [chr(byte) for byte in printable] + [chr(256 + n) for n in range(256 - len(printable))]


def tokenizer_document(merges: Sequence[str]) -> dict[str, Any]:
    """The content of `tokenizer.json`: normalization, splitting, a vocabulary of 49,408 entries, and the merges."""
    alphabet = byte_alphabet()
    words = [*alphabet, *(character + WORD_END for character in alphabet)]
    words += [merge.replace(" ", "") for merge in merges]
    words += [START_TOKEN, END_TOKEN]
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [],
        "normalizer": {
            "type": "Sequence",
            "normalizers": [
                {"type": "NFC"},
                {"type": "Replace", "pattern": {"Regex": r"\s+"}, "content": " "},
                {"type": "Lowercase"},
            ],
        },
        "pre_tokenizer": {
            "type": "Sequence",
            "pretokenizers": [
                {"type": "Split", "pattern": {"Regex": WORD_PATTERN}, "behavior": "Removed", "invert": True},
                {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False},
            ],
        },
        "post_processor": None,
        "decoder": None,
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": "",
            "end_of_word_suffix": WORD_END,
            "fuse_unk": False,
            "byte_fallback": False,
            "ignore_merges": False,
            "vocab": {word: number for number, word in enumerate(words)},
            "merges": list(merges),
        },
    }


def main(arguments: Sequence[str] | None = None) -> int:
    """Write the file; return the exit status."""
    parser = argparse.ArgumentParser(prog="python -m training.make_tokenizer", description=__doc__.split("\n")[0])
    parser.add_argument("source", type=Path, help=f"the open_clip_torch wheel, or {MERGES_NAME}")
    parser.add_argument("output", type=Path, help="tokenizer.json to write")
    options = parser.parse_args(arguments)
    try:
        document = tokenizer_document(read_merges(options.source))
    except (OSError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    text = json.dumps(document, ensure_ascii=False, separators=(",", ":"))
    options.output.write_text(text + "\n", encoding="utf-8", newline="\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
