"""Images in a folder per class or a zip of them: which there are, in which order, what is refused; decoded once."""

from __future__ import annotations

import io
import os
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from data import cache, image_folder
from data.cache import decoded
from data.image_folder import read_images
from data.images import Images, content_digest
from runner.build import check
from runner.cache import folder
from runner.compose import compose
from runner.identity import key

if TYPE_CHECKING:
    from data.cache import Parts

CONF = Path(__file__).resolve().parents[1] / "conf" / "dataset" / "image_folder.yaml"
CLASSES = ("ant", "bee", "cow")
SHAPE = (3, 4, 6)
# Images per class: 3, 2 and 2 to train with, one each to test with.
TRAIN, TEST = {"ant": 3, "bee": 2, "cow": 2}, dict.fromkeys(CLASSES, 1)
RIGHT: dict[str, Any] = {"shape": SHAPE, "num_classes": 3, "sizes": (7, 3), "mend": "mend it"}


def pixels(part: str, name: str, number: int) -> np.ndarray:
    """(height, width, channels) of one image, another one each."""
    seed = ("train", "test").index(part) * 1000 + CLASSES.index(name) * 100 + number
    return np.random.default_rng(seed).integers(256, size=(4, 6, 3), dtype=np.uint8)


def png(image: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "PNG")
    return buffer.getvalue()


def members() -> dict[str, bytes]:
    found = {}
    for part, counts in (("train", TRAIN), ("test", TEST)):
        for name, count in counts.items():
            for number in range(count):
                found[f"{part}/{name}/{number}.png"] = png(pixels(part, name, number))
    return found


def write_zip(path: Path, files: dict[str, bytes]) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        for name in reversed(list(files)):  # the order in the zip does not matter
            archive.writestr(name, files[name])


def write_folder(path: Path, files: dict[str, bytes]) -> None:
    for name, body in files.items():
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        (path / name).write_bytes(body)


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A data root with the same images in a folder and in a zip, and a cache folder of its own."""
    monkeypatch.setenv("REGROW_CACHE", str(tmp_path / "cache"))
    write_zip(tmp_path / "images.zip", members())
    write_folder(tmp_path / "images", members())
    return tmp_path


def read(root: Path, path: str = "images.zip", **changes: Any) -> Parts:
    return read_images(str(root), path, **{**RIGHT, **changes})


def option(**changes: Any) -> dict[str, Any]:
    section = yaml.safe_load(CONF.read_text())
    fixed = {"shape": list(SHAPE), "num_classes": 3, "train_size": 7, "test_size": 3}
    return {k: v for k, v in section.items() if k not in ("name", "revision", "_target_")} | fixed | changes


def digest_of(parts: Parts) -> str:
    return content_digest(*parts[0], *parts[1])


# What is read


@pytest.mark.parametrize("path", ["images", "images.zip"])
def test_classes_take_turns_and_pixels_are_exact(root: Path, path: str) -> None:
    (images, labels), (test_images, test_labels) = read(root, path)
    turns = [("ant", 0), ("bee", 0), ("cow", 0), ("ant", 1), ("bee", 1), ("cow", 1), ("ant", 2)]
    assert labels.tolist() == [CLASSES.index(name) for name, _ in turns] and labels.dtype == torch.int64
    expected = np.stack([pixels("train", *turn) for turn in turns]).transpose(0, 3, 1, 2)
    assert images.dtype == torch.uint8 and images.numpy().tolist() == expected.tolist()
    assert test_labels.tolist() == [0, 1, 2]
    assert test_images[1].numpy().tolist() == pixels("test", "bee", 0).transpose(2, 0, 1).tolist()


def test_what_is_no_image_is_passed_over(root: Path) -> None:
    before = digest_of(read(root, "images"))
    others = ["train/ant/notes.txt", "train/ant/.hidden.png", "readme.png", "train/stray.png", "extra/ant/0.png"]
    write_folder(root / "images", dict.fromkeys([*others, "train/ant/deep/0.png", "train/none/notes.txt"], b"no image"))
    (root / "images/test/empty").mkdir()
    assert digest_of(read(root, "images")) == before


def test_grey_and_colour_become_what_the_shape_says(root: Path) -> None:
    grey = np.arange(24, dtype=np.uint8).reshape(4, 6)
    files = {name: png(grey) for name in members()}
    write_zip(root / "grey.zip", files)
    (images, _), _ = read(root, "grey.zip")
    assert images[0].tolist() == [grey.tolist()] * 3
    (images, _), _ = read(root, "grey.zip", shape=(1, 4, 6))
    assert images.shape == (7, 1, 4, 6) and images[0, 0].tolist() == grey.tolist()


@pytest.mark.parametrize("path", ["images", "images.zip"])
def test_absent_images_name_the_path_and_the_mend(root: Path, path: str) -> None:
    with pytest.raises(FileNotFoundError, match=r"other/(nothing|a)\S* is absent: the data root is .* or mend it$"):
        read(root / "other", path.replace("images", "nothing"))
    (root / "other/a").mkdir(parents=True)
    with pytest.raises(FileNotFoundError, match=r"other/a/train is absent"):
        read(root / "other", "a")


@pytest.mark.parametrize("path", ["images", "images.zip"])
@pytest.mark.parametrize(
    ("change", "wrong", "words"),
    [
        ({}, {"sizes": (8, 3)}, "holds 7 images in train/, not 8"),
        ({}, {"sizes": (7, 4)}, "holds 3 images in test/, not 4"),
        ({}, {"num_classes": 4}, "holds 3 classes, .* not 4"),
        ({}, {"classes": ("ant", "bee", "dog")}, "such as 'cow'"),
        ({"train/dog/0.png": b""}, {}, "train and test of .* differ in their classes, such as 'dog'"),
        ({"test/ant/0.png": b"no image"}, {}, r"test/ant/0\.png in .* is not a whole image"),
        ({"test/ant/0.png": png(pixels("test", "ant", 0))[:-30]}, {}, r"test/ant/0\.png in .* is not a whole image"),
        ({"test/ant/0.png": b"GIF89a" + bytes(30)}, {}, "is not a whole image"),
        (
            {"train/cow/1.png": png(np.zeros((6, 4, 3), np.uint8))},
            {},
            r"train/cow/1\.png in .* has 6x4 pixels, not 4x6",
        ),
    ],
)
def test_other_images_are_refused(root: Path, path: str, change: Any, wrong: Any, words: str) -> None:
    files = {**members(), **change}
    shutil.rmtree(root / "images")
    write_folder(root / "images", files)
    write_zip(root / "images.zip", files)
    with pytest.raises(ValueError, match=words):
        read(root, path, **wrong)


def test_what_is_neither_a_zip_nor_a_folder_is_refused(root: Path) -> None:
    (root / "images.zip").write_bytes((root / "images.zip").read_bytes()[:-40])
    with pytest.raises(ValueError, match="is not a whole zip"):
        read(root)
    (root / "file").write_bytes(b"")
    with pytest.raises(ValueError, match="is not a folder of folders"):
        read(root, "file")


@pytest.mark.parametrize("path", ["images", "images.zip"])
def test_a_file_that_unpacks_to_too_much_is_not_unpacked(
    root: Path, path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(image_folder, "LARGEST", 40)
    with pytest.raises(ValueError, match=r"train/ant/0\.png .* not a whole image \(it .* bytes\)"):
        read(root, path)


def test_a_picture_of_many_pixels_is_not_decoded(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    huge = io.BytesIO()
    Image.new("1", (9000, 9000)).save(huge, "PNG")  # 81 million pixels in a few kB
    write_zip(root / "images.zip", {**members(), "train/ant/0.png": huge.getvalue()})
    monkeypatch.setattr(Image.Image, "load", None)
    with pytest.raises(ValueError, match="has 9000x9000 pixels"):
        read(root)


# The dataset


def test_runs_name_the_images_by_their_digest(root: Path) -> None:
    found = digest_of(read(root))
    with pytest.raises(ValueError, match=rf"have the digest {found}: set dataset\.digest={found}"):
        image_folder.image_folder(root=str(root), **option())
    dataset = image_folder.image_folder(root=str(root), **option(digest=found, train_subset=5))
    assert isinstance(dataset, Images)
    assert (dataset.train_size, dataset.num_classes, dataset.in_shape) == (5, 3, SHAPE)
    assert dataset.batch(torch.arange(5), 0)[0].shape == (5, *SHAPE)
    with pytest.raises(ValueError, match=f"digest is {found}, not 0123"):
        image_folder.image_folder(root=str(root), **option(digest="0123"))
    configs = [compose(["dataset=image_folder", f"dataset.digest={digest}"]) for digest in ("a1", "b2")]
    assert key(configs[0]) != key(configs[1])
    check(configs[0]["dataset"], "dataset", ("root",))


@pytest.mark.parametrize("path", ["../images.zip", "/images.zip", "a/../../images"])
def test_a_path_outside_the_data_root_is_refused(root: Path, path: str) -> None:
    with pytest.raises(ValueError, match="should be a folder or a zip below the data root"):
        image_folder.image_folder(root=str(root), **option(path=path))


@pytest.mark.parametrize("shape", [[4, 6], [2, 4, 6]])
def test_a_shape_that_images_cannot_have_is_refused(root: Path, shape: list[int]) -> None:
    with pytest.raises(ValueError, match=r"1 channel \(grey\) or 3"):
        image_folder.image_folder(root=str(root), **option(shape=shape))


# The cache


def counted(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Grows by one name with every image that is decoded."""
    seen: list[str] = []
    decode = Image.Image.convert

    def convert(self: Image.Image, *args: Any, **kwargs: Any) -> Image.Image:
        seen.append("image")
        return decode(self, *args, **kwargs)

    monkeypatch.setattr(Image.Image, "convert", convert)
    return seen


def kept(root: Path) -> list[Path]:
    return sorted((root / "cache").iterdir())


@pytest.mark.parametrize("path", ["images", "images.zip"])
def test_images_are_decoded_once(root: Path, path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = counted(monkeypatch)
    first = digest_of(read(root, path))
    assert len(seen) == 10
    assert digest_of(read(root, path)) == first and len(seen) == 10
    assert len(kept(root)) == 1


@pytest.mark.parametrize("path", ["images", "images.zip"])
def test_changed_images_are_decoded_again(root: Path, path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    before = digest_of(read(root, path))
    seen = counted(monkeypatch)
    files = {**members(), "test/bee/0.png": png(pixels("test", "bee", 9))}
    write_zip(root / "images.zip", files)
    place = root / "images/test/bee/0.png"
    place.write_bytes(files["test/bee/0.png"])
    os.utime(place, ns=(0, 1))  # even where the clock is too coarse to tell
    (_, _), (images, _) = read(root, path)
    assert images[1].numpy().tolist() == pixels("test", "bee", 9).transpose(2, 0, 1).tolist()
    assert len(seen) == 10 and len(kept(root)) == 1  # the old file was replaced
    assert digest_of(read(root, path)) != before and len(seen) == 10


def test_another_shape_or_decoder_is_another_reading(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read(root)
    seen = counted(monkeypatch)
    read(root, shape=(1, 4, 6))
    assert len(seen) == 10
    monkeypatch.setattr("PIL.__version__", "0.0")
    read(root, shape=(1, 4, 6))
    assert len(seen) == 20


def broken(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


def flipped(path: Path) -> None:
    """One pixel of a whole file is another one."""
    content = torch.load(path, weights_only=True)
    content["train"][0][0, 0, 0, 0] ^= 1
    torch.save(content, path)


def empty(path: Path) -> None:
    torch.save({}, path)


def text(path: Path) -> None:
    path.write_text("no tensors")


@pytest.mark.parametrize("damage", [broken, flipped, empty, text])
def test_a_damaged_cache_is_made_again(
    root: Path, damage: Callable[[Path], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    first = digest_of(read(root))
    damage(kept(root)[0])
    seen = counted(monkeypatch)
    assert digest_of(read(root)) == first and len(seen) == 10
    assert digest_of(read(root)) == first and len(seen) == 10  # and whole again


def test_a_cache_can_call_nothing(root: Path) -> None:
    class Attack:
        def __reduce__(self) -> tuple[Any, ...]:
            return os.mkdir, (str(root / "broken_in"),)

    first = digest_of(read(root))
    torch.save({"schema": 1, "train": Attack()}, kept(root)[0])
    assert digest_of(read(root)) == first
    assert not (root / "broken_in").exists()


def test_another_users_cache_is_not_believed(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read(root)
    seen = counted(monkeypatch)
    monkeypatch.setattr(os, "getuid", lambda: os.geteuid() + 1)
    read(root)
    assert len(seen) == 10


def test_without_a_cache_folder_everything_is_the_same(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = digest_of(read(root))
    for place in ("", str(root / "images.zip")):  # none; none can be made there
        monkeypatch.setenv("REGROW_CACHE", place)
        assert digest_of(read(root)) == digest_of(read(root)) == first
    assert folder is cache.folder


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), RuntimeError("unexpected pos")])
def test_a_full_disk_leaves_the_old_cache(root: Path, error: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    first = digest_of(read(root))
    before = kept(root)[0].read_bytes()

    def half(content: Any, file: Any) -> None:
        file.write(b"half")
        raise error

    monkeypatch.setattr(torch, "save", half)
    assert digest_of(read(root, shape=(1, 4, 6))) != first
    assert [path.read_bytes() for path in kept(root)] == [before]


def test_a_cache_is_of_its_source_and_fingerprint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REGROW_CACHE", str(tmp_path))

    def made(value: int) -> Callable[[], Parts]:
        part = (torch.full((2, 1, 2, 2), value, dtype=torch.uint8), torch.tensor([0, 1]))
        return lambda: (part, part)

    def value(source: str, fingerprint: str, new: int) -> int:
        (images, labels), _ = decoded(tmp_path / source, fingerprint, made(new))
        assert labels.tolist() == [0, 1]
        return int(images[0, 0, 0, 0])

    assert [value("a", "x", 1), value("a", "x", 2), value("b", "x", 3), value("a", "y", 4), value("a", "y", 5)] == [
        1,
        1,
        3,
        4,
        4,
    ]
    assert len(list(tmp_path.iterdir())) == 2
