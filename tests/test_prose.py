"""What the prose promises: links lead somewhere, commands parse, samples compile, figures of the wheel hold."""

from __future__ import annotations

import ast
import importlib.util
import re
import shlex
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PAGES = sorted(path for folder in (".", "docs", "benchmarks", "examples") for path in (ROOT / folder).glob("*.md"))


def blocks(page: Path, language: str) -> list[str]:
    """The fenced code blocks of one language."""
    return re.findall(rf"^```{language}\n(.*?)^```", page.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)


def commands() -> list[str]:
    """Every command line in the shell blocks of all pages, comments and environment variables removed."""
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
def test_links_lead_somewhere(page: Path) -> None:
    text = re.sub(r"```.*?```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)
    targets = [target for target in re.findall(r"\]\(([^)\s]+)\)", text) if not re.match(r"[a-z]+:|#", target)]
    assert [target for target in targets if not (page.parent / target.partition("#")[0]).exists()] == []


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
def test_commands_of_the_device_parse(command: str) -> None:
    from cris_edge.cli import main

    name, *arguments = shlex.split(command)[1:]
    known = main.commands[name]
    # Only the options are held against the command: a path in a sample does not exist here.
    options = {option for parameter in known.params for option in (*parameter.opts, *parameter.secondary_opts)}
    assert {argument for argument in arguments if argument.startswith("-")} <= options | {"--help"}


@pytest.mark.parametrize("command", [command for command in COMMANDS if command.startswith("python -m ")])
def test_modules_of_the_workbench_exist(command: str) -> None:
    module = shlex.split(command)[2]
    assert importlib.util.find_spec(module) is not None
