"""Parsed files are kept across processes, each for the content that it was parsed from."""

from collections.abc import Callable
from datetime import date
from pathlib import Path
from typing import Any

import pytest
import yaml

from results import parsed as module
from results.parsed import parsed, remembered


@pytest.fixture(autouse=True)
def cache_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    path = tmp_path / "cache"
    monkeypatch.setenv("REGROW_CACHE", str(path))
    return path


@pytest.fixture
def load(tmp_path: Path) -> tuple[Callable[[str, str], Any], list[str]]:
    """A function that reads a text as the file of some name, and the names that were parsed for it."""
    calls: list[str] = []

    def load(name: str, text: str) -> Any:
        path = tmp_path / name
        path.write_text(text)

        def parse() -> Any:
            calls.append(name)
            return yaml.safe_load(text)

        return parsed(path, text.encode(), parse)

    return load, calls


Load = tuple[Callable[[str, str], Any], list[str]]


def test_a_file_is_parsed_once_as_long_as_it_stays_as_it_is(load: Load) -> None:
    read, calls = load
    for _ in range(2):
        with remembered():
            assert read("a.yaml", "x: {y: [1, 0.5, null]}") == {"x": {"y": [1, 0.5, None]}}
            assert read("b.yaml", "x: 1") == {"x": 1}
    assert calls == ["a.yaml", "b.yaml"]
    with remembered():
        assert read("b.yaml", "x: 2") == {"x": 2}
        assert read("a.yaml", "x: 1")["x"] == 1  # what b.yaml was is nothing to a.yaml
    assert calls[2:] == ["b.yaml", "a.yaml"]
    with remembered():
        assert (read("b.yaml", "x: 2"), read("a.yaml", "x: 1")) == ({"x": 2}, {"x": 1})
    assert len(calls) == 4


def test_what_is_kept_is_ones_own(load: Load) -> None:
    read, _ = load
    for _ in range(2):
        with remembered():
            read("a.yaml", "x: [1]")["x"].append(2)
            assert read("a.yaml", "x: [1]") == {"x": [1]}


def test_outside_of_a_command_nothing_is_kept(load: Load, cache_folder: Path) -> None:
    read, calls = load
    for _ in range(2):
        assert read("a.yaml", "x: 1") == {"x": 1}
    assert len(calls) == 2 and not cache_folder.exists()


@pytest.mark.parametrize(
    "text, content",
    [("1: 2", {1: 2}), ("x: 2020-01-02", {"x": date(2020, 1, 2)}), ("x: .inf", {"x": float("inf")}), ("? [1]\n", None)],
)
def test_what_json_cannot_hold_is_parsed_each_time(load: Load, text: str, content: Any) -> None:
    read, calls = load
    for _ in range(2):
        with remembered():
            if content is None:
                with pytest.raises(yaml.YAMLError):  # nor is a mistake kept
                    read("a.yaml", text)
            else:
                assert read("a.yaml", text) == content
    assert len(calls) == 2


def test_a_damaged_file_or_other_code_is_not_believed(
    load: Load, cache_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read, calls = load

    def again() -> int:
        with remembered():
            assert read("a.yaml", "x: 1") == {"x": 1}
        return len(calls)

    assert [again(), again()] == [1, 1]
    (file,) = cache_folder.iterdir()
    file.write_bytes(file.read_bytes().replace(b'{"x":1}', b'{"x":2}'))
    assert [again(), again()] == [2, 2]
    monkeypatch.setattr(module, "_code", lambda: "other")
    assert [again(), again()] == [3, 3]


def test_files_that_are_gone_are_dropped_and_new_ones_written_once(
    load: Load, cache_folder: Path, tmp_path: Path
) -> None:
    read, _ = load
    with remembered():
        read("a.yaml", "x: 1")
        with remembered():
            read("b.yaml", "x: 1")
        assert not cache_folder.exists()
    (file,) = cache_folder.iterdir()
    assert b"a.yaml" in file.read_bytes() and b"b.yaml" in file.read_bytes()
    (tmp_path / "a.yaml").unlink()
    with remembered():
        read("c.yaml", "x: 1")
    assert b"a.yaml" not in file.read_bytes() and b"b.yaml" in file.read_bytes()
