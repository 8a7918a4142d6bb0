"""The pages are correct: links resolve, commands parse, Python samples compile, named files exist."""

from __future__ import annotations

import ast
import importlib.util
import io
import re
import shlex
import tokenize
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
# Words of a translation, in place of which the field has its own: again, learned, trained, step, the user, prompt …
UNIDIOMATIC = re.compile(
    r"\b(anew|learnt|taught|rungs?|whoever|wordings?|embedded[ -]models?|drawn[ -]scenes?)\b", re.IGNORECASE
)
# Files that still contain such words; the list only gets shorter.
KNOWN_UNIDIOMATIC: set[str] = set()
PAGES = sorted(path for folder in (".", "docs", "benchmarks", "examples") for path in (ROOT / folder).glob("*.md"))


def blocks(page: Path, language: str) -> list[str]:
    """Return the fenced code blocks of one language."""
    return re.findall(rf"^```{language}\n(.*?)^```", page.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)


def anchors(page: Path) -> set[str]:
    """Return the anchors that GitHub makes of a page's headings."""
    text = re.sub(r"```.*?```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)
    headings = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def commands() -> list[str]:
    """Return every command in the shell blocks of all pages, without comments and environment variables."""
    found = set()
    for page in PAGES:
        for block in blocks(page, "bash"):
            for line in block.replace("\\\n", " ").splitlines():
                for part in line.split("&&"):
                    words = shlex.split(part, comments=True)
                    while words and re.fullmatch(r"[A-Z_]+=.*", words[0]):
                        words.pop(0)
                    if words:
                        found.add(shlex.join(words))
    return sorted(found)


COMMANDS = commands()


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_links_resolve(page: Path) -> None:
    text = re.sub(r"```.*?```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)
    broken = []
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        name, _, anchor = target.partition("#")
        if re.match(r"[a-z]+:", target):
            continue
        file = page.parent / name if name else page
        if not file.exists() or (anchor and anchor not in anchors(file)):
            broken.append(target)
    assert broken == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_python_samples_compile(page: Path) -> None:
    for block in blocks(page, "python"):
        ast.parse(block)


def test_the_quick_start_is_two_commands() -> None:
    section = (ROOT / "README.md").read_text(encoding="utf-8").partition("## Quick start")[2].partition("\n## ")[0]
    (block,) = re.findall(r"```bash\n(.*?)```", section, re.DOTALL)
    first, second = block.splitlines()
    assert first.startswith("pip install -c constraints.txt ")
    assert second == 'pip install -c constraints.txt -e ".[dev]" && pytest'


@pytest.mark.parametrize("command", [command for command in COMMANDS if command.startswith("cris-edge ")])
def test_options_of_sdk_commands_exist(command: str) -> None:
    from cris_edge.cli import main

    name, *arguments = shlex.split(command)[1:]
    known = main.commands[name]
    # Only the options are checked: the paths in the pages do not exist here.
    options = {option for parameter in known.params for option in (*parameter.opts, *parameter.secondary_opts)}
    assert {argument for argument in arguments if argument.startswith("-")} <= options | {"--help"}


@pytest.mark.parametrize("command", [command for command in COMMANDS if command.startswith("python -m ")])
def test_workbench_modules_exist(command: str) -> None:
    module = shlex.split(command)[2]
    assert importlib.util.find_spec(module) is not None


def test_contributing_names_existing_files() -> None:
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    table = text.partition("## Where to change what")[2].partition("\n## ")[0]
    files = re.findall(r"\| `([\w/.]+)` \|", table)
    assert len(files) >= 10
    assert [file for file in files if not (ROOT / file).is_file()] == []


def prose(path: Path) -> str:
    """Return the text of a page or the comments, strings and test names of a module, without code and quotations."""
    source = path.read_text(encoding="utf-8")
    if path.suffix == ".md":
        text = re.sub(r"^```.*?^```", "", source, flags=re.MULTILINE | re.DOTALL)
    else:
        parts = []
        for token in tokenize.generate_tokens(io.StringIO(source).readline):
            if token.type == tokenize.COMMENT or tokenize.tok_name[token.type] == "FSTRING_MIDDLE":
                parts.append(token.string.lstrip("# "))
            elif token.type == tokenize.STRING and re.search(r"\s", token.string):  # a single word is a key
                string = re.sub(r"\{[^{}]*\}", "", token.string)  # replacement fields, before Python 3.12
                parts.append(re.sub(r"^\w*(\"{3}|'{3}|\"|')|(\"{3}|'{3}|\"|')$", "", string))
            elif token.type == tokenize.NAME and token.string.startswith("test_"):
                parts.append(token.string.replace("_", " "))
        text = "\n".join(parts)
    return re.sub(r"`[^`]*`|\"[^\"\n]*\"|“[^”]*”", "", re.sub(r"\s+", " ", text) if path.suffix == ".md" else text)


def unidiomatic() -> dict[str, list[str]]:
    """Return the unidiomatic words of every page and module, by file."""
    found = {}
    for path in sorted([*ROOT.rglob("*.md"), *ROOT.rglob("*.py")]):
        name = path.relative_to(ROOT).as_posix()
        skipped = name == "CHANGELOG.md" or name.startswith("benchmarks/results/") or path == Path(__file__)
        if not skipped and not any(part.startswith((".", "build", "venv")) for part in path.relative_to(ROOT).parts):
            text = re.sub(r"\s+", " ", prose(path))
            if words := sorted({match[0].lower() for match in UNIDIOMATIC.finditer(text)}):
                found[name] = words
    return found


def test_prose_uses_the_words_of_the_field() -> None:
    assert {name: words for name, words in unidiomatic().items() if name not in KNOWN_UNIDIOMATIC} == {}


def test_unidiomatic_words_are_found(tmp_path: Path) -> None:
    module = tmp_path / "module.py"
    module.write_text('''"""An embedded
model."""\nx = f"{y} taught"  # anew, and `rung` is code\ndef test_whoever_asks(): "'a wording'", "rung"\n''')
    text = re.sub(r"\s+", " ", prose(module))
    assert [match[0] for match in UNIDIOMATIC.finditer(text)] == [
        "embedded model",
        "taught",
        "anew",
        "whoever",
        "wording",
    ]
    page = tmp_path / "page.md"
    page.write_text('A drawn\nscene, "learnt", `taught`.\n\n```\nrung\n```\n')
    assert [match[0] for match in UNIDIOMATIC.finditer(prose(page))] == ["drawn scene"]
