"""The project around the code: the lock, the packages, the folders, the Makefile, the citation, fetching data."""

import gzip
import hashlib
import importlib.metadata
import io
import os
import shutil
import subprocess
import sys
import tomllib
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.error import URLError

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from data import fetch, sources
from scripts import fetch_data

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ["runner", "methods", "models", "data", "results"]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
DEPENDENCIES = PROJECT["dependencies"] + [line for extra in PROJECT["optional-dependencies"].values() for line in extra]


# The lock


def lock_lines() -> list[str]:
    lines = (ROOT / "requirements.lock").read_text().splitlines()
    return [line for line in lines if line and not line.startswith("#")]


def locked() -> dict[str, str]:
    """Canonical name -> pinned version."""
    pins = [Requirement(line) for line in lock_lines()]
    return {canonicalize_name(pin.name): next(iter(pin.specifier)).version for pin in pins}


def test_lock_pins_exact_versions_once() -> None:
    names = []
    for line in lock_lines():
        pin = Requirement(line)
        assert [(s.operator, "*" in s.version) for s in pin.specifier] == [("==", False)], line
        names.append(canonicalize_name(pin.name))
    assert len(names) == len(set(names))


def test_lock_names_no_index_host_or_file() -> None:
    text = (ROOT / "requirements.lock").read_text()
    for word in ("://", "--find-links", "--index-url", "--extra-index-url", "-f ", " @ ", "/"):
        assert word not in text, word


@pytest.mark.parametrize("line", DEPENDENCIES)
def test_lock_satisfies_pyproject(line: str) -> None:
    wanted = Requirement(line)
    assert wanted.specifier.contains(locked()[canonicalize_name(wanted.name)])


def test_lock_holds_what_its_packages_need() -> None:
    pins, checked = locked(), 0
    for name, version in pins.items():
        try:
            distribution = importlib.metadata.distribution(name)
        except importlib.metadata.PackageNotFoundError:
            continue  # another platform's, by its marker
        if distribution.version != version:
            continue
        for line in distribution.requires or []:
            need = Requirement(line)
            if need.marker is None or need.marker.evaluate({"extra": ""}):
                pin = pins.get(canonicalize_name(need.name))
                assert pin is not None and need.specifier.contains(pin, prereleases=True), f"{name} needs {need}"
                checked += 1
    assert checked > 50


# The packages and folders


def test_packages_are_found_from_any_folder(tmp_path: Path) -> None:
    try:
        importlib.metadata.distribution("regrow")
    except importlib.metadata.PackageNotFoundError:
        pytest.skip("regrow is not installed in this environment: run make setup")
    code = f"import importlib.util as u; [print(u.find_spec(name).origin) for name in {PACKAGES!r}]"
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    found = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env=environment, capture_output=True, text=True, check=True
    )
    assert found.stdout.split() == [str(ROOT / name / "__init__.py") for name in PACKAGES]


def test_no_folder_or_module_is_named_for_nothing() -> None:
    nameless = {"util", "utils", "helper", "helpers", "misc", "common"}
    found = []
    for folder, folders, files in os.walk(ROOT):
        if Path(folder) == ROOT:
            folders[:] = [name for name in folders if name not in {"runs", "out", "datasets", "build", "dist"}]
        folders[:] = [name for name in folders if not name.startswith(".")]
        found += [Path(folder, name) for name in folders + files if name.split(".")[0] in nameless]
    assert found == []


@pytest.mark.skipif(shutil.which("git") is None, reason="git is not installed")
def test_gitignore_keeps_source_and_records_and_drops_output(tmp_path: Path) -> None:
    shutil.copy(ROOT / ".gitignore", tmp_path)
    subprocess.run(["git", "init", "--quiet", tmp_path], check=True)
    kept = [
        "data/mnist.py",
        "data/text/reader.py",
        "conf/dataset/mnist.yaml",
        "results/papers/dsr/table4.yaml",
        "results/logged/mnist/lenet_300_100/set/0123456789ab/seed0.json",
        "runner/build.py",
        "requirements.lock",
    ]
    dropped = ["runs/mnist/summary.json", "out/demo/table.md", "datasets/mnist/x.gz", ".venv/bin/python"]
    asked = subprocess.run(
        ["git", "-C", tmp_path, "-c", "core.excludesFile=", "check-ignore", "--no-index", *kept, *dropped],
        capture_output=True,
        text=True,
        check=False,
    )
    assert asked.stdout.split() == dropped


# The Makefile and the documents


@pytest.mark.skipif(shutil.which("make") is None, reason="make is not installed")
def test_make_lists_its_targets() -> None:
    listed = subprocess.run(["make", "-C", ROOT, "--no-print-directory"], capture_output=True, text=True, check=True)
    targets = [line.split()[1] for line in listed.stdout.splitlines()]
    assert targets == ["help", "setup", "demo", "test", "check", "bench", "tables", "report", "deepsparse", "clean"]


@pytest.mark.skipif(shutil.which("make") is None, reason="make is not installed")
def test_make_setup_refuses_an_old_python(tmp_path: Path) -> None:
    for name in ("Makefile", "pyproject.toml", "requirements.lock"):
        shutil.copy(ROOT / name, tmp_path)
    refused = subprocess.run(
        ["make", "-C", tmp_path, "setup", "PYTHON=false"], capture_output=True, text=True, check=False
    )
    assert refused.returncode != 0
    assert "needs Python 3.11 or newer" in refused.stderr
    assert not (tmp_path / ".venv").exists()


def test_citation_names_the_five_papers_and_this_version() -> None:
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert (citation["title"].split(":")[0], citation["version"]) == (PROJECT["name"], PROJECT["version"])
    assert citation["license"] == PROJECT["license"]
    papers = {(paper["authors"][0]["family-names"], paper["year"]) for paper in citation["references"]}
    assert papers == {("Mostafa", 2019), ("Lin", 2020), ("Peste", 2021), ("Chen", 2023), ("Chijiwa", 2021)}
    assert len(citation["references"]) == 5


def test_changelog_and_license_are_of_this_version() -> None:
    assert f"## {PROJECT['version']} " in (ROOT / "CHANGELOG.md").read_text()
    text = (ROOT / "LICENSE").read_text()
    assert "Version 2.0, January 2004" in text and "END OF TERMS AND CONDITIONS" in text


# Fetching data


CONTENT = {"a.gz": b"first" * 1000, "b.gz": b"second" * 1000}
PACKED = {name: gzip.compress(body, mtime=0) for name, body in CONTENT.items()}
Serve = Callable[[dict[str, bytes | Exception]], list[str]]


def md5(body: bytes) -> str:
    return hashlib.md5(body, usedforsecurity=False).hexdigest()


@pytest.fixture
def toy(monkeypatch: pytest.MonkeyPatch) -> sources.Source:
    """A dataset of two small files and two mirrors, alone in the table, under the name `toy`."""
    files = tuple(sources.File(name, md5(PACKED[name]), md5(CONTENT[name])) for name in PACKED)
    source = sources.Source(folder="toy", mirrors=("https://one.test/", "https://two.test/"), files=files)
    monkeypatch.setattr(fetch_data, "SOURCES", {"toy": source})
    return source


class Response(io.BytesIO):
    """What torchvision uses of an HTTP response."""

    def __init__(self, body: bytes, url: str) -> None:
        super().__init__(body)
        self.url, self.length = url, len(body)


@pytest.fixture
def serve(monkeypatch: pytest.MonkeyPatch) -> Serve:
    """Replace the network by a dict url -> body or exception; gives the list of urls asked for."""

    def install(answers: dict[str, bytes | Exception]) -> list[str]:
        asked: list[str] = []

        def urlopen(request: urllib.request.Request) -> Response:
            # torchvision asks once for redirects and once for the body, and over http where https broke.
            url = request.full_url.replace("http:", "https:")
            if asked[-1:] != [url]:
                asked.append(url)
            answer = answers[url]
            if isinstance(answer, Exception):
                raise answer
            return Response(answer, request.full_url)

        monkeypatch.setattr(urllib.request, "urlopen", urlopen)
        return asked

    return install


def everything(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.rglob("*") if path.is_file())


def test_fetch_verifies_and_does_not_repeat(
    toy: sources.Source, serve: Serve, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = serve({f"https://one.test/{name}": body for name, body in PACKED.items()})
    assert fetch_data.main(["toy", "--root", str(tmp_path)]) == 0
    assert {name: (tmp_path / "toy" / name).read_bytes() for name in PACKED} == PACKED
    assert everything(tmp_path) == ["a.gz", "b.gz"]
    assert "already" not in capsys.readouterr().out
    assert fetch_data.main(["toy", "--root", str(tmp_path)]) == 0
    assert "toy is already in" in capsys.readouterr().out
    assert asked == ["https://one.test/a.gz", "https://one.test/b.gz"]


def test_fetch_replaces_only_the_file_that_is_wrong(toy: sources.Source, serve: Serve, tmp_path: Path) -> None:
    (tmp_path / "toy").mkdir()
    (tmp_path / "toy/a.gz").write_bytes(gzip.compress(CONTENT["a.gz"], mtime=77))  # packed anew: the same data
    (tmp_path / "toy/b.gz").write_bytes(PACKED["b.gz"][:-9])  # cut short
    asked = serve({"https://one.test/b.gz": PACKED["b.gz"]})
    assert fetch_data.main(["toy", "--root", str(tmp_path)]) == 0
    assert asked == ["https://one.test/b.gz"]
    assert (tmp_path / "toy/b.gz").read_bytes() == PACKED["b.gz"]


def test_fetch_turns_to_the_next_mirror(toy: sources.Source, serve: Serve, tmp_path: Path) -> None:
    asked = serve(
        {
            "https://one.test/a.gz": b"<html>moved</html>",
            "https://two.test/a.gz": PACKED["a.gz"],
            "https://one.test/b.gz": TimeoutError("timed out"),
            "https://two.test/b.gz": PACKED["b.gz"],
        }
    )
    assert fetch_data.main(["toy", "--root", str(tmp_path)]) == 0
    assert len(asked) == 4
    assert fetch.missing(toy, tmp_path) == []


@pytest.mark.parametrize(
    ("answer", "cause"),
    [
        (URLError(OSError(-2, "Name or service not known")), "Name or service not known"),
        (TimeoutError("timed out"), "timed out"),
        (PACKED["a.gz"][:20], "MD5 sum differs"),
    ],
)
def test_fetch_without_a_working_mirror_says_why_and_leaves_nothing(
    toy: sources.Source,
    serve: Serve,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    answer: bytes | Exception,
    cause: str,
) -> None:
    serve({f"https://{host}.test/a.gz": answer for host in ("one", "two")})
    assert fetch_data.main(["toy", "--root", str(tmp_path)]) == 1
    *_, said = capsys.readouterr().err.splitlines()  # after torchvision's bar
    assert said.startswith("toy: a.gz could not be downloaded (https://one.test/a.gz: ")
    assert cause in said and "check the network connection" in said
    assert everything(tmp_path) == []


def test_fetch_leaves_nothing_of_a_connection_that_breaks(
    toy: sources.Source, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    class Breaking(Response):
        def read(self, size: int | None = -1, /) -> bytes:
            if self.tell() == 0:
                return super().read(10)
            raise ConnectionResetError("Connection reset by peer")

    monkeypatch.setattr(urllib.request, "urlopen", lambda request: Breaking(PACKED["a.gz"], request.full_url))
    assert fetch_data.main(["toy", "--root", str(tmp_path)]) == 1
    assert "Connection reset by peer" in capsys.readouterr().err
    assert everything(tmp_path) == []


def test_fetch_names_a_folder_it_cannot_write(
    toy: sources.Source, serve: Serve, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    serve({"https://one.test/a.gz": PACKED["a.gz"]})
    (tmp_path / "toy").write_text("a file where the folder should be")
    assert fetch_data.main(["toy", "--root", str(tmp_path)]) == 1
    said = capsys.readouterr().err
    assert "could not be written" in said and "--root" in said and said.count("\n") == 1


def test_fetch_of_an_unknown_dataset_names_the_nearest(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert fetch_data.main(["mnits", "--root", str(tmp_path)]) == 2
    assert "Did you mean 'mnist'?" in capsys.readouterr().err
    assert everything(tmp_path) == []


def test_fetch_takes_its_root_from_the_environment(
    toy: sources.Source,
    serve: Serve,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    serve({f"https://one.test/{name}": body for name, body in PACKED.items()})
    monkeypatch.setenv("REGROW_DATA", str(tmp_path / "given"))
    assert fetch_data.main(["toy"]) == 0
    monkeypatch.delenv("REGROW_DATA")
    monkeypatch.chdir(tmp_path)
    assert fetch_data.main(["toy"]) == 0
    assert fetch.missing(toy, tmp_path / "given") == fetch.missing(toy, tmp_path / "datasets") == []


def test_fetch_help_imports_no_torch() -> None:
    code = (
        "import sys\nfrom scripts import fetch_data\n"
        "try:\n    fetch_data.main(['--help'])\nexcept SystemExit:\n    print('torch' in sys.modules)"
    )
    asked = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert "--root" in asked.stdout and asked.stdout.split()[-1] == "False"


def test_sources_are_complete() -> None:
    def is_digest(text: Any) -> bool:
        return isinstance(text, str) and len(text) == 32 and set(text) <= set("0123456789abcdef")

    for name, source in sources.SOURCES.items():
        assert source.files and source.mirrors, name
        assert all(mirror.startswith("https://") and mirror.endswith("/") for mirror in source.mirrors), name
        for file in (*source.files, *source.alternatives):
            assert is_digest(file.md5), file
            assert is_digest(file.content_md5) == file.name.endswith("ubyte.gz"), file


def test_the_real_mnist_is_verified() -> None:
    root = os.environ.get("REGROW_DATA")
    if not root or not (Path(root) / "mnist").is_dir():
        pytest.skip("REGROW_DATA names no folder with mnist in it")
    assert fetch.missing(sources.SOURCES["mnist"], Path(root)) == []
