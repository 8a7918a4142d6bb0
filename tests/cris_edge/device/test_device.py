from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from cris_edge.device.caches import cache_folder, chosen_cache
from cris_edge.device.memory import memory_bytes
from cris_edge.device.processor import (
    instruction_sets,
    physical_cores,
    platform_name,
    processor_name,
    usable_cores,
)
from cris_edge.errors import OptionError


def test_cores_are_counted() -> None:
    assert 1 <= physical_cores() <= usable_cores()


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="needs CPU affinity")
def test_only_usable_cores_are_counted() -> None:
    before = os.sched_getaffinity(0)
    try:
        os.sched_setaffinity(0, {min(before)})
        assert usable_cores() == physical_cores() == 1
    finally:
        os.sched_setaffinity(0, before)


def test_the_processor_is_described() -> None:
    assert processor_name()
    assert platform_name().strip()
    sets = instruction_sets()
    if sys.platform == "linux":
        assert sets
    assert len(sets) == len(set(sets))
    memory = memory_bytes()
    assert memory is None or memory > 1 << 27


@pytest.mark.parametrize(
    ("platform", "environment", "expected"),
    [
        ("linux", {"XDG_CACHE_HOME": "/somewhere"}, "/somewhere/cris-edge"),
        ("linux", {"XDG_CACHE_HOME": "relative"}, "/home/me/.cache/cris-edge"),
        ("linux", {}, "/home/me/.cache/cris-edge"),
        ("darwin", {"XDG_CACHE_HOME": "/somewhere"}, "/home/me/Library/Caches/cris-edge"),
        ("win32", {"LOCALAPPDATA": "/home/me/Local"}, "/home/me/Local/cris-edge/cache"),
        ("win32", {}, "/home/me/AppData/Local/cris-edge/cache"),
    ],
)
@pytest.mark.skipif(sys.platform == "win32", reason="compares POSIX paths")
def test_the_cache_folder_follows_the_platform(
    platform: str, environment: dict[str, str], expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("XDG_CACHE_HOME", "LOCALAPPDATA"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", "/home/me")
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(sys, "platform", platform)
    assert cache_folder() == Path(expected)


@pytest.mark.skipif(sys.platform == "win32", reason="sets HOME")
@pytest.mark.parametrize("home", ["~", "relative"])
def test_without_a_home_folder_nothing_is_cached(home: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setenv("HOME", home)  # what an unknown user leaves: expanduser returns "~" itself
    assert cache_folder() is None
    assert chosen_cache("auto") is None
    monkeypatch.delenv("HOME")
    with pytest.raises(OptionError, match="the home folder is unknown"):
        chosen_cache("~no-such-user/cache")
