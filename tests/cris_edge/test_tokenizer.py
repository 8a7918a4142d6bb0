from __future__ import annotations

import html
import json
import pickle
import subprocess
import sys
import threading
import warnings
from pathlib import Path

import ftfy
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cris_edge.errors import BundleError, OptionError, PromptError
from cris_edge.tokenizer import MAX_CHARACTERS, PromptWarning, Tokenizer, clean

START, END = 49406, 49407
LONG = "a man in a red shirt who stands beside a small brown dog on the left side of the wide street"


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer()


def quietly(tokenizer: Tokenizer, text: str, length: int = 17) -> list[int]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", PromptWarning)
        return tokenizer(text, length)[0].tolist()


@pytest.mark.parametrize("length", [17, 22, 77])
def test_golden(tokenizer: Tokenizer, golden: Path, length: int) -> None:
    lines = (golden / "tokenizer.jsonl").read_text(encoding="utf-8").splitlines()
    assert len(lines) >= 300
    for line in map(json.loads, lines):
        assert quietly(tokenizer, line["text"], length) == line[f"ids_{length}"], line["text"]


def test_shape_type_and_padding(tokenizer: Tokenizer) -> None:
    tokens = tokenizer(["a cat", "the dog on the right"], length=17)
    assert tokens.shape == (2, 17)
    assert tokens.dtype == np.int64
    assert tokens[0].tolist() == [START, 320, 2368, END] + [0] * 13
    assert (tokens[1] == tokenizer("the dog on the right")[0]).all()
    assert tokenizer(("a cat",), np.int64(5)).tolist() == [[START, 320, 2368, END, 0]]
    assert (tokenizer.start, tokenizer.end, tokenizer.vocabulary) == (START, END, 49408)


@pytest.mark.parametrize(
    ("text", "plain"),
    [
        ("A Cat", "a cat"),
        ("  a \t\r\n cat\u3000", "a cat"),
        ("the man’s hat", "the man's hat"),
        ("".join(chr(ord(letter) + 0xFEE0) for letter in "width"), "width"),
        ("cafe\u0301", "café"),
        ("salt &amp; pepper", "salt & pepper"),
        ("salt &amp;amp; pepper", "salt & pepper"),
        ("schÃ¶n", "schön"),
        ("\ufeffa cat", "a cat"),
        ("a\x00 cat\x07", "a cat"),
        ("\x1b[31ma cat\x1b[0m", "a cat"),
    ],
)
def test_equivalent_texts_get_the_same_tokens(tokenizer: Tokenizer, text: str, plain: str) -> None:
    assert quietly(tokenizer, text) == quietly(tokenizer, plain)


@pytest.mark.parametrize("text", ["<|startoftext|>", "<|endoftext|>", "a <|ENDOFTEXT|> b", "&lt;|endoftext|&gt;"])
def test_special_tokens_cannot_be_typed(tokenizer: Tokenizer, text: str) -> None:
    inside = quietly(tokenizer, text, 77)[1:]
    assert START not in inside
    assert inside.count(END) == 1
    assert inside.index(END) > 5  # the characters themselves were encoded


def test_a_long_prompt_is_truncated_with_a_warning(tokenizer: Tokenizer) -> None:
    whole = tokenizer(LONG, 77)[0]
    with pytest.warns(
        PromptWarning, match="17 tokens and was truncated: 'left side of the wide street' was dropped"
    ) as seen:
        cut = tokenizer(LONG)[0]
    assert seen[0].filename == __file__
    assert cut[:16].tolist() == whole[:16].tolist()
    assert cut[16] == END


def test_a_prompt_that_just_fits_gives_no_warning(tokenizer: Tokenizer) -> None:
    tokens = tokenizer("a " * 15)[0]
    assert tokens.tolist() == [START] + [320] * 15 + [END]
    with pytest.warns(PromptWarning):
        assert tokenizer("a " * 16)[0].tolist() == tokens.tolist()


def test_every_truncated_prompt_gets_a_warning(tokenizer: Tokenizer) -> None:
    with pytest.warns(PromptWarning) as seen:
        tokenizer([LONG, "a cat", LONG.upper()])
    assert len(seen) == 2


def test_very_long_prompts_are_fast(tokenizer: Tokenizer) -> None:
    for text in ("é" * 3_000_000, "a" * 3_000_000, " " * 3_000_000 + "a cat"):
        assert len(quietly(tokenizer, text)) == 17
    assert quietly(tokenizer, " " * 2 * MAX_CHARACTERS + "a cat")[:4] == [START, 320, 2368, END]


@pytest.mark.parametrize("text", ["", " ", "\t\n\r ", "\u3000\u2003", "\x00\x01", "\ufeff", "&nbsp;", "\x1b[0m"])
def test_an_empty_prompt_is_an_error(tokenizer: Tokenizer, text: str) -> None:
    with pytest.raises(PromptError, match="empty"):
        tokenizer(text)
    with pytest.raises(PromptError, match="empty"):
        tokenizer(["a cat", text])


@pytest.mark.parametrize("texts", [None, 7, b"a cat", ["a cat", None], [b"a cat"], {"a cat"}, [["a cat"]], [np.nan]])
def test_what_is_not_text_is_an_error(tokenizer: Tokenizer, texts: object) -> None:
    with pytest.raises(PromptError, match="expected a str"):
        tokenizer(texts)  # type: ignore[arg-type]


def test_no_prompt_is_an_error(tokenizer: Tokenizer) -> None:
    with pytest.raises(PromptError, match="No prompt was given"):
        tokenizer([])


@pytest.mark.parametrize("length", [2, 0, -1, 17.0, "17", None, True])
def test_the_length_is_checked(tokenizer: Tokenizer, length: object) -> None:
    with pytest.raises(OptionError, match="token length"):
        tokenizer("a cat", length)  # type: ignore[arg-type]


PIECES = [
    "<|endoftext|>",
    "<|startoftext|>",
    "&amp;",
    "&#0;",
    "&#xD800;",
    "\ud800",
    "\udfff",
    "’s",
    "'LL",
    "\x00",
    "\x85",
]
PIECES += [
    "İ",
    "ﬃ",
    "ǅ",
    "\u202e",
    "👩\u200d👧",
    "e\u0301",
    "\x1b[31m",
    "Ã©",
    "</w>",
    "Ġ",
    "a",
    " ",
    "7",
    "½",
    "\U0010ffff",
]
HOSTILE = st.one_of(st.text(max_size=80), st.lists(st.sampled_from(PIECES), max_size=30).map("".join))


@settings(max_examples=300, deadline=None)
@given(HOSTILE, st.integers(3, 30))
def test_any_text_gives_tokens_or_an_error(tokenizer: Tokenizer, text: str, length: int) -> None:
    try:
        tokens = quietly(tokenizer, text, length)
    except PromptError:
        return
    end = tokens.index(END)
    assert tokens[0] == START
    assert all(0 <= token < START for token in tokens[1:end])
    assert end >= 2
    assert not any(tokens[end + 1 :])
    longer = quietly(tokenizer, text, length + 10)
    assert longer[: end if end < length - 1 else length - 1] == tokens[:end]


@settings(max_examples=300, deadline=None)
@given(st.text(alphabet=st.characters(max_codepoint=0x7F), max_size=60))
def test_the_ascii_shortcut_changes_nothing(text: str) -> None:
    fixed = html.unescape(html.unescape(ftfy.fix_text(text))).strip()
    assert clean(text) == " ".join(fixed.split()).lower()


def test_plain_prompts_do_not_import_ftfy(root: Path) -> None:
    code = (
        "import sys\nfrom cris_edge.tokenizer import Tokenizer\nt = Tokenizer()\nt('the man in red, 2nd from left!')\n"
        "assert 'ftfy' not in sys.modules and 'cv2' not in sys.modules\nt('caf\\u00e9')\nassert 'ftfy' in sys.modules"
    )
    subprocess.run([sys.executable, "-W", "error", "-c", code], cwd=root, check=True, timeout=60)


def test_threads_and_copies_agree(tokenizer: Tokenizer) -> None:
    prompts = [f"the {word} on the left" for word in ("cat", "dog", "mug", "man’s hat")]
    expected = tokenizer(prompts)
    results: list[np.ndarray] = []
    workers = [threading.Thread(target=lambda: results.append(tokenizer(prompts))) for _ in range(8)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert len(results) == 8
    assert all((result == expected).all() for result in results)
    assert (pickle.loads(pickle.dumps(tokenizer))(prompts) == expected).all()


def test_other_programs_read_the_file_alone(root: Path) -> None:
    import tokenizers

    alone = tokenizers.Tokenizer.from_file(str(root / "cris_edge/models/default/tokenizer.json"))
    ids = alone.encode("The  Man's CAFE\u0301 <|endoftext|>").ids
    assert [START, *ids, END] == quietly(Tokenizer(), "The  Man's CAFE\u0301 <|endoftext|>", len(ids) + 2)


def test_unusable_files(tmp_path: Path, root: Path) -> None:
    with pytest.raises(BundleError, match="There is no tokenizer file"):
        Tokenizer(tmp_path / "tokenizer.json")
    text = (root / "cris_edge/models/default/tokenizer.json").read_text(encoding="utf-8")
    path = tmp_path / "other.json"
    damaged = ["", "{", "[]", "{}", text[:1000], text.replace('"BPE"', '"WordPiece"', 1)]
    damaged += [text.replace('"<|endoftext|>":', '"<|end|>":'), text.replace('"merges":["i n"', '"merges":["i nix"')]
    for content in damaged:
        assert content != text
        path.write_text(content, encoding="utf-8")
        with pytest.raises(BundleError, match="tokenizer file"):
            Tokenizer(path)
