"""Datasets: what they hold, in which order it comes, how it is augmented, and what is said when it is not there."""

from __future__ import annotations

import gzip
import hashlib
import io
import os
import pickle
import random
import struct
import tarfile
import zipfile
from collections import Counter
from collections.abc import Callable
from importlib import import_module
from inspect import Parameter, signature
from pathlib import Path
from typing import Any, get_type_hints

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from torch import Tensor
from torchvision.transforms import v2

from data import cifar10 as cifar
from data import cifar_archive, image_files
from data.augment import PadMode, augmentation, crop_flip
from data.base import Dataset
from data.cifar100 import cifar100
from data.cifar_archive import LAYOUTS, read_archive, read_official, read_pickle
from data.digits import digits
from data.image_files import ImageFiles
from data.imagenet import central_part, imagenet, names_digest, random_box, random_part
from data.images import Images, content_digest, proportional_part
from data.mnist import mnist, read_idx
from data.order import derive, epoch_order
from data.sources import SOURCES, File, Source
from data.synthetic import synthetic
from data.unreadable import Unreadable
from runner.build import check
from runner.compose import compose, names
from runner.errors import Misuse
from runner.execute import execute
from runner.identity import key, run_dir
from runner.records import read_metrics

CONF = Path(__file__).resolve().parents[1] / "conf" / "dataset"
NAMES = sorted(path.stem for path in CONF.glob("*.yaml"))
ROOT = os.environ.get("REGROW_DATA", "")
CPU = torch.device("cpu")


def options(name: str, **changes: Any) -> dict[str, Any]:
    """The keywords of a dataset's builder as conf/dataset gives them, besides the root."""
    section = yaml.safe_load((CONF / f"{name}.yaml").read_text())
    return {k: v for k, v in section.items() if k not in ("name", "revision", "_target_")} | changes


def real(file: str) -> str:
    """The data root; skips where it does not hold `file`."""
    if not ROOT:
        pytest.skip("needs real data: set REGROW_DATA to the data root")
    if not Path(ROOT, file).exists():
        pytest.skip(f"needs real data: REGROW_DATA holds no {file}")
    return ROOT


# Every option of conf/dataset


def builder(name: str) -> Callable[..., Dataset]:
    module, _, function = yaml.safe_load((CONF / f"{name}.yaml").read_text())["_target_"].rpartition(".")
    return getattr(import_module(module), function)


@pytest.mark.parametrize("name", NAMES)
def test_option_names_every_keyword_of_its_builder(name: str) -> None:
    section = yaml.safe_load((CONF / f"{name}.yaml").read_text())
    parameters = signature(builder(name)).parameters
    assert all(parameter.kind is Parameter.KEYWORD_ONLY for parameter in parameters.values())
    assert set(get_type_hints(builder(name))) == {*parameters, "return"}
    assert set(section) == {*parameters, "name", "revision", "_target_"} - {"root"}
    assert section["name"] == name
    check(compose([f"dataset={name}"])["dataset"], "dataset", ("root",))
    for option, parameter in parameters.items():
        if parameter.default is not Parameter.empty:
            assert section[option] == parameter.default, option


@pytest.mark.parametrize("experiment", [name for name in names("experiment") if name.startswith("dsr/")])
@pytest.mark.parametrize("method", ["dense", "static", "gmp", "compressed", "set", "deepr", "dsr"])
def test_experiments_compose_with_their_dataset(experiment: str, method: str) -> None:
    config = compose([f"experiment={experiment}", f"method={method}"])
    assert config["dataset"]["name"] == experiment.rpartition("_")[2]


def test_jpeg_copies_never_share_a_key_with_the_exact_images() -> None:
    exact, copies = (compose(["experiment=dsr/wrn_cifar10", f"dataset={name}"]) for name in ("cifar10", "cifar10_jpeg"))
    assert key(exact) != key(copies)
    assert exact["dataset"]["mean"] == copies["dataset"]["mean"]
    # Not even when their names and digests are made equal: other code reads them.
    copies["dataset"] |= {"name": "cifar10", "digest": None}
    assert key(exact) != key(copies)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ("dataset.pad=32", "dataset.pad = 32"),
        ("dataset.pad_mode=edge", "one of reflect, zero"),
        ("dataset.flip=2", "true or false"),
        ("dataset.train_subset=0", "in the range 1 <= x"),
    ],
)
def test_impossible_augmentation_is_refused_before_anything_starts(change: str, words: str) -> None:
    config = compose(["dataset=cifar10", change])
    with pytest.raises(Misuse, match=words):
        check(config["dataset"], "dataset", ("root",))


# Absent data


@pytest.mark.parametrize(
    ("name", "mend"),
    [
        ("mnist", "python scripts/fetch_data.py mnist --root"),
        ("cifar10", "python scripts/fetch_data.py cifar10 --root"),
        ("cifar100", "python scripts/fetch_data.py cifar100 --root"),
        ("cifar10_jpeg", "dataset=cifar10, and .*python scripts/fetch_data.py cifar10 --root"),
        ("image_folder", "put the images there, as train/<class>/"),
        ("imagenet", "image-net.org"),
    ],
)
def test_absent_data_name_the_root_and_the_mend(name: str, mend: str, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=rf"is absent: the data root is '{tmp_path}'.*REGROW_DATA.*{mend}"):
        builder(name)(root=str(tmp_path), **options(name))


# Order


def test_seeds_are_derived_alike_everywhere() -> None:
    assert derive(0, "order", 1) == int.from_bytes(hashlib.sha256(b"0/order/1").digest()[:8], "big") >> 1
    found = {derive(seed, *rest) for seed in (0, 1, 2) for rest in (("order", 1), ("order", 2), ("augment", 1))}
    assert len(found) == 9


def test_epoch_order_is_a_permutation_of_seed_and_epoch_alone() -> None:
    orders = [epoch_order(100, seed, epoch) for seed in (0, 1) for epoch in (1, 2)]
    assert all(order.sort().values.equal(torch.arange(100)) for order in orders)
    assert len({tuple(order.tolist()) for order in orders}) == 4
    torch.manual_seed(5)
    assert epoch_order(100, 0, 1).equal(orders[0])


# Images on the device


def small_images(**changes: Any) -> Images:
    rng = torch.Generator().manual_seed(1)
    train = torch.randint(256, (20, 2, 4, 5), dtype=torch.uint8, generator=rng)
    test = torch.randint(256, (7, 2, 4, 5), dtype=torch.uint8, generator=rng)
    fixed: dict[str, Any] = {"num_classes": 3, "mean": [0.25, 0.5], "std": [0.5, 2.0], "peak": 200.0}
    return Images((train, torch.arange(20) % 3), (test, torch.arange(7) % 3), **fixed | changes)


def test_a_batch_is_normalised_per_channel() -> None:
    dataset = small_images()
    indices = torch.tensor([3, 0, 19])
    images, labels = dataset.batch(indices, seed=0)
    raw = dataset.train[0][indices].double() / 200
    expected = torch.stack([(raw[:, 0] - 0.25) / 0.5, (raw[:, 1] - 0.5) / 2.0], dim=1)
    assert images.dtype == torch.float32 and torch.allclose(images.double(), expected, atol=1e-6)
    assert labels.tolist() == [0, 0, 1]
    assert (dataset.train_size, dataset.in_shape) == (20, (2, 4, 5))


def test_test_batches_hold_every_sample_once_in_order() -> None:
    dataset = small_images()
    batches = list(dataset.test_batches(3))
    assert [len(labels) for _, labels in batches] == [3, 3, 1]
    images = torch.cat([images for images, _ in batches])
    raw = dataset.test[0].double() / 200
    assert torch.allclose(images[:, 0].double(), (raw[:, 0] - 0.25) / 0.5, atol=1e-6)
    assert torch.cat([labels for _, labels in batches]).equal(dataset.test[1])


def test_the_batch_seed_fixes_the_augmentation() -> None:
    dataset = small_images(augment=crop_flip(2, "zero"))
    first, again, other = (dataset.batch(torch.arange(20), seed)[0] for seed in (7, 7, 8))
    assert first.equal(again)
    assert not first.equal(other)
    assert not first.equal(small_images().batch(torch.arange(20), 7)[0])


def test_a_subset_is_the_beginning_of_each_class_and_the_digest_is_of_the_whole() -> None:
    whole = small_images()
    digest = content_digest(*whole.train, *whole.test)
    part = small_images(train_subset=5, digest=digest)
    labels = torch.tensor([0, 0, 0, 0, 0, 0, 1, 1, 1, 2, 2, 2, 0, 0, 0])  # 9, 3 and 3
    assert proportional_part(labels, 5).tolist() == [0, 1, 2, 6, 9]
    assert proportional_part(labels, 10).tolist() == [0, 1, 2, 3, 4, 5, 6, 7, 9, 10]
    assert part.train_size == 5 and part.train[0].equal(whole.train[0][:5])
    with pytest.raises(ValueError, match=f"digest is {digest}, not 0123"):
        small_images(digest="0123")


def test_the_digest_sees_content_shape_and_type() -> None:
    base = torch.arange(6, dtype=torch.uint8)
    changed = base.clone()
    changed[5] = 9
    variants = [base, changed, base.view(2, 3), base.to(torch.int8)]
    assert len({content_digest(variant) for variant in variants}) == 4


# Augmentation


def naive_crop_flip(image: Tensor, pad: int, mode: PadMode, top: int, left: int, mirrored: bool) -> Tensor:
    """One image of shape (c, h, w), pixel by pixel: pad, crop at (top, left) of the padded image, mirror."""
    channels, height, width = image.shape
    kind = {"reflect": "reflect", "zero": "constant"}[mode]
    padded = np.pad(image.numpy(), ((0, 0), (pad, pad), (pad, pad)), mode=kind)  # type: ignore[call-overload]
    found = torch.empty_like(image)
    for c in range(channels):
        for y in range(height):
            for x in range(width):
                found[c, y, width - 1 - x if mirrored else x] = int(padded[c, top + y, left + x])
    return found


@pytest.mark.parametrize("mode", ["reflect", "zero"])
@pytest.mark.parametrize(("pad", "flip"), [(2, True), (2, False), (0, True), (3, True)])
def test_crop_flip_equals_the_naive_one(mode: PadMode, pad: int, flip: bool) -> None:
    images = torch.randint(256, (40, 2, 4, 6), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    found = crop_flip(pad, mode, flip)(images, torch.Generator().manual_seed(3))
    rng = torch.Generator().manual_seed(3)
    tops, lefts = (torch.randint(-pad, pad + 1, (2, 40, 1), generator=rng) + pad).view(2, 40).tolist()
    mirrored = (torch.rand(40, 1, generator=rng) < 0.5).view(-1).tolist() if flip else [False] * 40
    expected = [
        naive_crop_flip(image, pad, mode, *draw) for image, *draw in zip(images, tops, lefts, mirrored, strict=True)
    ]
    assert found.dtype == torch.uint8
    assert found.equal(torch.stack(expected))


def test_crop_flip_draws_every_offset_and_side_alike() -> None:
    # One bright pixel in the middle shows offset and side: pad 1 gives 3 x 3 offsets, the flip doubles the columns.
    image = torch.zeros(1, 1, 4, 4, dtype=torch.uint8)
    image[0, 0, 1, 1] = 255
    many = crop_flip(1, "zero")(image.expand(18_000, 1, 4, 4), torch.Generator().manual_seed(0))
    places = Counter(many.view(18_000, 16).int().argmax(1).tolist())
    # Row 1 - dy in {0, 1, 2}; column 1 - dx in {0, 1, 2}, or mirrored 3 - it in {3, 2, 1}: weights 1, 2, 2, 1 of 6.
    for place in range(16):
        row, column = divmod(place, 4)
        share = (row < 3) / 3 * (1, 2, 2, 1)[column] / 6
        assert abs(places[place] / 18_000 - share) < 0.01, place


def test_a_border_wider_than_the_image_is_refused() -> None:
    images = torch.zeros(1, 1, 4, 6, dtype=torch.uint8)
    with pytest.raises(ValueError, match="pad = 4 is too wide to reflect images of 4x6"):
        crop_flip(4, "reflect")(images, torch.Generator())
    assert crop_flip(5, "zero")(images, torch.Generator()).shape == images.shape


# MNIST, digits, synthetic


def idx(array: np.ndarray) -> bytes:
    return b"\0\0\x08" + bytes([array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape) + array.tobytes()


def test_idx_files_are_read_and_checked(tmp_path: Path) -> None:
    array = np.arange(24, dtype=np.uint8).reshape(2, 3, 4)
    path = tmp_path / "some.gz"
    path.write_bytes(gzip.compress(idx(array)))
    assert read_idx(path, hashlib.md5(idx(array)).hexdigest(), "root").numpy().tolist() == array.tolist()
    with pytest.raises(ValueError, match="does not hold the official data"):
        read_idx(path, "0" * 32, "root")
    path.write_bytes(gzip.compress(idx(array))[:-9])
    with pytest.raises(ValueError, match="not a whole gzip file"):
        read_idx(path, None, "root")
    path.write_bytes(gzip.compress(b"\0\0\x0d" + idx(array)[3:]))
    with pytest.raises(ValueError, match="not an idx file"):
        read_idx(path, None, "root")


def test_real_mnist_is_what_the_digest_says() -> None:
    dataset = mnist(root=real("mnist"), **options("mnist"))
    assert (dataset.train_size, len(dataset.test[1]), dataset.in_shape) == (60_000, 10_000, (1, 28, 28))
    assert dataset.train[1][:5].tolist() == [5, 0, 4, 1, 9]
    scaled = dataset.train[0].double() / 255
    assert [round(float(value), 4) for value in (scaled.mean(), scaled.std())] == [0.1307, 0.3081]


def test_digits_are_all_there() -> None:
    dataset = digits(root="", **options("digits"))
    assert (dataset.train_size, len(dataset.test[1]), dataset.in_shape) == (1437, 360, (1, 8, 8))
    assert set(dataset.train[1].tolist()) == set(dataset.test[1].tolist()) == set(range(10))
    assert int(dataset.train[0].max()) == 16


def test_synthetic_is_a_function_of_its_seed() -> None:
    made = [synthetic(root="", **options("synthetic", data_seed=seed)) for seed in (0, 0, 1)]
    assert made[0].train[0].equal(made[1].train[0]) and made[0].test[1].equal(made[1].test[1])
    assert not made[0].train[0].equal(made[2].train[0])
    assert made[0].train[0].shape == (1024, 3, 32, 32)


# CIFAR-10 and CIFAR-100


def old_text(value: str | bytes) -> bytes:
    raw = value.encode() if isinstance(value, str) else value
    return pickle.BINSTRING + struct.pack("<i", len(raw)) + raw


def old_pickle(value: Any) -> bytes:
    """A pickle as Python 2 wrote the official files: text and bytes alike are byte strings of protocol 2."""
    pickler: Any = pickle._Pickler  # the pure Python one, which can be extended
    buffer = io.BytesIO()
    writer = pickler(buffer, protocol=2)
    writer.dispatch = dict(pickler.dispatch)
    for kind in (str, bytes):
        writer.dispatch[kind] = lambda self, text: self.write(old_text(text))
    writer.dump(value)
    return buffer.getvalue().replace(b"numpy._core.multiarray", b"numpy.core.multiarray")


def archive_of(files: dict[str, bytes], folder: str = "cifar-10-batches-py") -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as archive:
        for name, body in files.items():
            info = tarfile.TarInfo(f"{folder}/{name}")
            info.size = len(body)
            archive.addfile(info, io.BytesIO(body))
    return buffer.getvalue()


def batch_of(number: int, size: int = 4) -> dict[str, Any]:
    pixels = np.random.default_rng(number).integers(256, size=(size, 3072), dtype=np.uint8)
    return {
        "batch_label": f"batch {number}",
        "labels": [(number + i) % 10 for i in range(size)],
        "data": pixels,
        "filenames": [f"{i}.png" for i in range(size)],
    }


BATCHES = [f"data_batch_{number}" for number in range(1, 6)] + ["test_batch"]
TINY = {name: old_pickle(batch_of(number)) for number, name in enumerate(BATCHES)}
PYTHON = LAYOUTS["cifar-10-python.tar.gz"]


def fine_batch(number: int) -> dict[str, Any]:
    """A batch of CIFAR-100: fine labels and coarse ones."""
    fine = [(37 * number + 11 * i + 90) % 100 for i in range(4)]
    return {"fine_labels": fine, "coarse_labels": [label // 5 for label in fine], "data": batch_of(number)["data"]}


def binary_of(batch: dict[str, Any]) -> bytes:
    """A batch as the binary versions have it: rows of label bytes and pixels."""
    labels = [batch[name] for name in ("coarse_labels", "fine_labels", "labels") if name in batch]
    return b"".join(bytes([*each, *pixels]) for *each, pixels in zip(*labels, batch["data"].tolist(), strict=True))


# Each official archive in small: 20 or 4 training images and 4 test images.
SMALL = {
    "cifar-10-python.tar.gz": archive_of(TINY),
    "cifar-10-binary.tar.gz": archive_of(
        {f"{name}.bin": binary_of(batch_of(number)) for number, name in enumerate(BATCHES)}, "cifar-10-batches-bin"
    ),
    "cifar-100-python.tar.gz": archive_of(
        {name: old_pickle(fine_batch(number)) for number, name in enumerate(("train", "test"))}, "cifar-100-python"
    ),
    "cifar-100-binary.tar.gz": archive_of(
        {f"{name}.bin": binary_of(fine_batch(number)) for number, name in enumerate(("train", "test"))},
        "cifar-100-binary",
    ),
}


def test_the_official_pickles_are_read() -> None:
    assert b"cnumpy.core.multiarray\n_reconstruct" in TINY["test_batch"]
    (images, labels), (test_images, test_labels) = read_archive(SMALL["cifar-10-python.tar.gz"], PYTHON)
    assert images.shape == (20, 3, 32, 32) and images.dtype == torch.uint8 and labels.dtype == torch.int64
    expected = [batch_of(number) for number in range(6)]
    assert labels.tolist() == [label for batch in expected[:5] for label in batch["labels"]]
    # A row is the red plane, the green and the blue one, each row by row.
    assert images[6, 2, 1, 5] == expected[1]["data"][2, 2 * 1024 + 1 * 32 + 5]
    assert test_images.view(4, -1).numpy().tolist() == expected[5]["data"].tolist()
    assert test_labels.tolist() == expected[5]["labels"]


@pytest.fixture
def tiny_cifar(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> str:
    """A data root with an archive of 20 training and 4 test images that counts as the official one."""
    put(monkeypatch, tmp_path, "cifar10", "cifar-10-python.tar.gz")
    return str(tmp_path)


def put(monkeypatch: pytest.MonkeyPatch, root: Path, name: str, file: str) -> None:
    """The small archives of a dataset count as the official ones; only `file` is below the root."""
    files = [
        File(other.name, hashlib.md5(SMALL[other.name], usedforsecurity=False).hexdigest())
        for other in (*SOURCES[name].files, *SOURCES[name].alternatives)
    ]
    monkeypatch.setitem(SOURCES, name, Source(name, (), (files[0],), tuple(files[1:])))
    (root / name).mkdir()
    (root / name / file).write_bytes(SMALL[file])


@pytest.mark.parametrize("version", ["python", "binary"])
def test_cifar100_has_the_fine_labels(version: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    put(monkeypatch, tmp_path, "cifar100", f"cifar-100-{version}.tar.gz")
    dataset = cifar100(root=str(tmp_path), **options("cifar100"))
    assert dataset.train[1].tolist() == fine_batch(0)["fine_labels"] == [90, 1, 12, 23]
    assert dataset.test[1].tolist() == fine_batch(1)["fine_labels"]
    assert (dataset.num_classes, dataset.in_shape) == (100, (3, 32, 32))
    assert dataset.train[0].view(4, -1).numpy().tolist() == fine_batch(0)["data"].tolist()
    assert dataset.test[0].view(4, -1).numpy().tolist() == fine_batch(1)["data"].tolist()


def test_cifar100_is_cropped_from_a_black_border(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    put(monkeypatch, tmp_path, "cifar100", "cifar-100-python.tar.gz")
    dataset = cifar100(root=str(tmp_path), **options("cifar100"))
    cropped = crop_flip(4, "zero")(dataset.train[0], torch.Generator().manual_seed(3)).double() / 255
    mean, std = torch.tensor([0.5071, 0.4867, 0.4408]), torch.tensor([0.2675, 0.2565, 0.2761])
    expected = (cropped - mean.view(3, 1, 1)) / std.view(3, 1, 1)
    assert torch.allclose(dataset.batch(torch.arange(4), 3)[0].double(), expected, atol=1e-5)
    assert augmentation(0, "zero", False) is None


def test_both_versions_of_an_archive_hold_the_same(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("cifar-10", "cifar-100"):
        versions = [f"{name}-{version}.tar.gz" for version in ("python", "binary")]
        first, second = (read_archive(SMALL[file], LAYOUTS[file]) for file in versions)
        assert content_digest(*first[0], *first[1]) == content_digest(*second[0], *second[1])
    put(monkeypatch, tmp_path, "cifar10", "cifar-10-binary.tar.gz")
    dataset = cifar.cifar10(root=str(tmp_path), **options("cifar10"))
    assert dataset.train_size == 20 and dataset.train[1][:4].tolist() == batch_of(0)["labels"]


def test_an_archive_is_unpacked_once(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    put(monkeypatch, tmp_path, "cifar10", "cifar-10-python.tar.gz")
    monkeypatch.setenv("REGROW_CACHE", str(tmp_path / "cache"))
    first = read_official("cifar10", str(tmp_path))
    monkeypatch.setattr(cifar_archive, "read_archive", None)
    again = read_official("cifar10", str(tmp_path))
    assert content_digest(*first[0], *first[1]) == content_digest(*again[0], *again[1])


def test_layouts_are_those_of_the_official_archives() -> None:
    known = [
        file.name for name in ("cifar10", "cifar100") for file in (*SOURCES[name].files, *SOURCES[name].alternatives)
    ]
    assert sorted(known) == sorted(LAYOUTS) == sorted(SMALL)
    # torchvision's lists of members are the official ones.
    from torchvision.datasets import CIFAR10, CIFAR100

    for file, theirs in (("cifar-10-python.tar.gz", CIFAR10), ("cifar-100-python.tar.gz", CIFAR100)):
        layout = LAYOUTS[file]
        assert layout.folder == theirs.base_folder and theirs.filename == file
        assert (*layout.train, layout.test) == tuple(name for name, _ in theirs.train_list + theirs.test_list)
        (official,) = SOURCES[theirs.__name__.lower()].files
        assert official.md5 == theirs.tgz_md5


def test_cifar10_augments_training_images_only(tiny_cifar: str) -> None:
    plain = cifar.cifar10(root=tiny_cifar, **options("cifar10", pad=0, flip=False))
    dataset = cifar.cifar10(root=tiny_cifar, **options("cifar10"))
    raw = dataset.train[0].double()
    mean, std = torch.tensor([125.3, 123.0, 113.9]), torch.tensor([63.0, 62.1, 66.7])
    expected = (raw - mean.view(3, 1, 1)) / std.view(3, 1, 1)
    assert torch.allclose(plain.batch(torch.arange(20), 1)[0].double(), expected, atol=1e-5)
    cropped = crop_flip(4, "reflect")(dataset.train[0], torch.Generator().manual_seed(1)).double()
    found = dataset.batch(torch.arange(20), 1)[0].double()
    assert torch.allclose(found, (cropped - mean.view(3, 1, 1)) / std.view(3, 1, 1), atol=1e-5)
    (test_images, _), (plain_images, _) = next(dataset.test_batches(4)), next(plain.test_batches(4))
    assert test_images.equal(plain_images)


def test_another_archive_is_refused(tiny_cifar: str) -> None:
    path = Path(tiny_cifar, "cifar10", "cifar-10-python.tar.gz")
    path.write_bytes(archive_of({**TINY, "test_batch": old_pickle(batch_of(9))}))
    with pytest.raises(ValueError, match="is not the official archive"):
        cifar.cifar10(root=tiny_cifar, **options("cifar10"))


def test_a_pickle_can_call_nothing(tmp_path: Path) -> None:
    class Attack:
        def __reduce__(self) -> tuple[Any, ...]:
            return os.mkdir, (str(tmp_path / "broken_in"),)

    for protocol in range(6):
        with pytest.raises(ValueError, match="mkdir, which is no array"):
            read_pickle(pickle.dumps([Attack()], protocol), "CIFAR-10")
    for evil in (b"cbuiltins\neval\n(S'1'\ntR.", b"cnumpy\nload\n(S'x'\ntR."):
        with pytest.raises(ValueError, match=r"eval|numpy\.load"):
            read_pickle(evil, "CIFAR-10")
    assert not (tmp_path / "broken_in").exists()


@pytest.mark.parametrize(
    ("packed", "words"),
    [
        (b"not an archive", "archive of CIFAR-10 is not readable"),
        (archive_of(TINY)[:2000], "archive of CIFAR-10 is not readable"),
        (archive_of({name: TINY[name] for name in BATCHES[1:]}), "data_batch_1"),
        (archive_of({**TINY, "data_batch_2": old_pickle([1, 2])}), "data_batch_2 .* holds no images and labels"),
        (archive_of({**TINY, "data_batch_2": TINY["data_batch_2"][:-50]}), "pickle of CIFAR-10 is not readable"),
        (archive_of({**TINY, "data_batch_3": old_pickle({"labels": [1], "data": np.zeros(3072)})}), "data_batch_3"),
        (
            archive_of({**TINY, "data_batch_3": old_pickle({**batch_of(3), "labels": [1, 2, 3]})}),
            "data_batch_3 .* holds 12288 bytes of pixels for 3 labels",
        ),
    ],
)
def test_a_damaged_archive_gets_one_sentence(packed: bytes, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        read_archive(packed, PYTHON)


@pytest.mark.parametrize(
    ("files", "words"),
    [
        ({"train.bin": b"", "test.bin": b"\0" * 3074}, r"train\.bin .* of CIFAR-100 holds 0 bytes, no whole number"),
        ({"train.bin": b"\0" * 3074, "test.bin": b"\0" * 3073}, r"test\.bin .* holds 3073 bytes"),
        ({"train.bin": b"\0" * 3074}, "archive of CIFAR-100 is not readable.*test.bin"),
    ],
)
def test_a_damaged_binary_archive_gets_one_sentence(files: dict[str, bytes], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        read_archive(archive_of(files, "cifar-100-binary"), LAYOUTS["cifar-100-binary.tar.gz"])


def jpeg(pixels: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "JPEG", quality=95)
    return buffer.getvalue()


@pytest.fixture
def tiny_jpegs(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> str:
    """A data root with JPEG copies of two training images and one test image per class; class c has brightness 20 c."""
    monkeypatch.setattr(cifar, "TRAIN_SIZE", 20)
    monkeypatch.setattr(cifar, "TEST_SIZE", 10)
    with zipfile.ZipFile(tmp_path / "cifar10-jpeg.zip", "w") as archive:
        for label, name in enumerate(cifar.CLASSES):
            for number in range(2):
                body = jpeg(np.full((32, 32, 3), 20 * label + number, np.uint8))
                archive.writestr(f"train/{name}/{number:04d}.jpg", body)
            archive.writestr(f"test/{name}/0000.jpg", body)
    return str(tmp_path)


def test_jpeg_copies_take_turns_by_class(tiny_jpegs: str) -> None:
    dataset = cifar.cifar10_jpeg(root=tiny_jpegs, **options("cifar10_jpeg", digest=None))
    assert dataset.train[1].tolist() == [*range(10), *range(10)] and dataset.test[1].tolist() == [*range(10)]
    brightness = dataset.train[0].float().mean((1, 2, 3)).round().int()
    assert brightness.tolist() == [20 * c + number for number in range(2) for c in range(10)]
    assert cifar.cifar10_jpeg(root=tiny_jpegs, **options("cifar10_jpeg", digest=None, train_subset=10)).train[
        1
    ].tolist() == [*range(10)]


def test_broken_jpeg_copies_get_one_sentence(tiny_jpegs: str, monkeypatch: pytest.MonkeyPatch) -> None:
    path = Path(tiny_jpegs, "cifar10-jpeg.zip")
    whole = path.read_bytes()
    monkeypatch.setattr(cifar, "TEST_SIZE", 20)
    with pytest.raises(ValueError, match=r"jpeg\.zip holds 10 images in test/, not 20"):
        cifar.cifar10_jpeg(root=tiny_jpegs, **options("cifar10_jpeg", digest=None))
    path.write_bytes(whole[:-100])
    with pytest.raises(ValueError, match="not a whole zip"):
        cifar.cifar10_jpeg(root=tiny_jpegs, **options("cifar10_jpeg", digest=None))
    path.write_bytes(whole.replace(b"automobile", b"autonomous"))
    with pytest.raises(ValueError, match=r"differs from airplane, automobile, .* in its classes, such as 'automobile'"):
        cifar.cifar10_jpeg(root=tiny_jpegs, **options("cifar10_jpeg", digest=None))


@pytest.mark.slow
def test_real_jpeg_copies_are_what_the_digest_says() -> None:
    dataset = cifar.cifar10_jpeg(root=real("cifar10-jpeg.zip"), **options("cifar10_jpeg"))
    assert (dataset.train_size, len(dataset.test[1]), dataset.in_shape) == (50_000, 10_000, (3, 32, 32))
    # They are copies: the mean and the deviation of the exact pixels fit to a unit.
    pixels = dataset.train[0].double()
    assert torch.allclose(pixels.mean((0, 2, 3)), torch.tensor([125.3, 123.0, 113.9]).double(), atol=1)
    assert torch.allclose(pixels.std((0, 2, 3)), torch.tensor([63.0, 62.1, 66.7]).double(), atol=1)


@pytest.mark.slow
def test_real_cifar10_is_exact() -> None:
    dataset = cifar.cifar10(root=real("cifar10/cifar-10-python.tar.gz"), **options("cifar10"))
    assert (dataset.train_size, len(dataset.test[1]), dataset.in_shape) == (50_000, 10_000, (3, 32, 32))
    assert dataset.train[1].bincount().tolist() == [5000] * 10


# ImageNet


TINY_IMAGENET = {"num_classes": 3, "train_size": 12, "test_size": 6, "side": 16, "resize": 20}


@pytest.fixture
def tiny_imagenet(tmp_path: Path) -> str:
    """A data root with 4 training and 2 test images of each of 3 classes, of several shapes, one grey."""
    rng = np.random.default_rng(0)
    for part, count in (("train", 4), ("val", 2)):
        for label in range(3):
            folder = tmp_path / "imagenet" / part / f"n0000000{label}"
            folder.mkdir(parents=True)
            for number in range(count):
                pixels = rng.integers(256, size=(24 + 9 * number, 40 - 5 * label, 3), dtype=np.uint8)
                image = Image.fromarray(pixels)
                (image.convert("L") if (label, number) == (1, 0) else image).save(folder / f"{part}_{number}.JPEG")
    return str(tmp_path)


def open_imagenet(root: str, **changes: Any) -> ImageFiles:
    return imagenet(root=root, **options("imagenet", **{**TINY_IMAGENET, **changes}))


def test_folders_are_classes(tiny_imagenet: str) -> None:
    dataset = open_imagenet(tiny_imagenet)
    assert (dataset.num_classes, dataset.in_shape, dataset.train_size) == (3, (3, 16, 16), 12)
    images, labels = dataset.batch(torch.tensor([11, 0, 5]), seed=1)
    assert images.shape == (3, 3, 16, 16) and images.dtype == torch.float32
    assert labels.tolist() == [2, 0, 1]


def test_test_images_equal_torchvisions_transforms(tiny_imagenet: str) -> None:
    dataset = open_imagenet(tiny_imagenet)
    reference = v2.Compose(
        [
            v2.Resize(20),
            v2.CenterCrop(16),
            v2.PILToTensor(),
            v2.ToDtype(torch.float32, scale=True),
            v2.Normalize(mean=[0.485, 0.456, 0.406], std=[0.229, 0.224, 0.225]),
        ]
    )
    paths = sorted(Path(tiny_imagenet, "imagenet", "val").rglob("*.JPEG"))
    expected = torch.stack([reference(Image.open(path).convert("RGB")) for path in paths])
    batches = list(dataset.test_batches(4))
    assert [len(labels) for _, labels in batches] == [4, 2]
    # Scaled by torch, not by Pillow: some pixels differ by up to 2 of 255.
    difference = (torch.cat([images for images, _ in batches]) - expected).abs() * dataset.scale
    assert float(difference.max()) < 2.01 and float(difference.mean()) < 0.3
    assert torch.cat([labels for _, labels in batches]).tolist() == [0, 0, 1, 1, 2, 2]


def test_a_streamed_batch_depends_on_its_seed_alone(tiny_imagenet: str) -> None:
    dataset, indices = open_imagenet(tiny_imagenet), torch.arange(12)
    first, other = dataset.batch(indices, 5)[0], dataset.batch(indices, 6)[0]
    assert not first.equal(other)
    assert open_imagenet(tiny_imagenet).batch(indices, 5)[0].equal(first)
    # A sample's augmentation is its own: it does not matter which others come with it.
    assert dataset.batch(torch.tensor([7, 2]), 5)[0].equal(first[[7, 2]])


def test_an_expected_batch_is_read_ahead_and_the_same(tiny_imagenet: str) -> None:
    reference, dataset = open_imagenet(tiny_imagenet), open_imagenet(tiny_imagenet)
    for step in range(4):
        indices = torch.arange(3) + step
        images, labels = dataset.batch(indices, step)
        # Rightly expected, with a wrong seed, with wrong samples.
        dataset.expect(indices + (1 if step < 3 else 2), step + (1 if step != 1 else 5))
        expected_images, expected_labels = reference.batch(indices, step)
        assert images.equal(expected_images) and labels.equal(expected_labels)
    dataset.expect(torch.tensor([1]), 9)
    reading = dataset.expected[9, (1,)]
    assert dataset.batch(torch.tensor([1]), 9)[0].equal(reference.batch(torch.tensor([1]), 9)[0])
    assert not dataset.expected and all(image.done() for image in reading.images)


def test_batches_are_expected_in_their_order(tiny_imagenet: str, monkeypatch: pytest.MonkeyPatch) -> None:
    dataset, read = open_imagenet(tiny_imagenet), []
    start = ImageFiles._read_training
    monkeypatch.setattr(ImageFiles, "_read_training", lambda *a: (read.append(a[1:]), start(*a))[1])
    for step in range(4):
        dataset.expect(torch.tensor([step]), step)
    dataset.expect(torch.tensor([3]), 3)
    assert len(read) == 4
    dataset.batch(torch.tensor([9]), 9)  # unexpected: those are still to come
    assert len(read) == 5 and len(dataset.expected) == 4
    dataset.batch(torch.tensor([2]), 2)
    assert len(read) == 5 and list(dataset.expected) == [(3, (3,))]
    for step in range(10, 90):
        dataset.expect(torch.tensor([0]), step)
    assert [seed for seed, _ in dataset.expected] == list(range(26, 90))


@pytest.mark.parametrize("accumulate", [1, 3])
def test_a_run_reads_every_image_once_an_epoch(
    accumulate: int, tiny_imagenet: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is read ahead is what is trained on: the batch after the present one, in all of its parts."""
    read = Counter[str]()
    load = image_files._load
    monkeypatch.setattr(image_files, "_load", lambda path, how: (read.update([path]), load(path, how))[1])
    given = ["dataset=imagenet", *(f"dataset.{name}={value}" for name, value in TINY_IMAGENET.items())]
    given += [f"data.root={tiny_imagenet}", "model.hidden=[4]", "schedule.epochs=3", f"runs={tmp_path}"]
    given += ["schedule.batch_size=5", f"schedule.accumulate={accumulate}"]
    execute(compose(given), given)
    assert {count for path, count in read.items() if "/train/" in path} == {3}
    assert sum("/train/" in path for path in read) == 12


def test_expecting_changes_nothing_in_resident_images() -> None:
    dataset = small_images(augment=crop_flip(1))
    before = dataset.batch(torch.arange(5), 2)[0]
    dataset.expect(torch.arange(9), 3)
    assert dataset.batch(torch.arange(5), 2)[0].equal(before)


def test_random_parts_are_inside_and_within_their_limits() -> None:
    rng = random.Random(0)
    shares, ratios = [], []
    for height, width in ((375, 500), (500, 333)) * 1000:
        top, left, h, w = random_box(height, width, (0.08, 1.0), (3 / 4, 4 / 3), rng)
        assert 0 <= top <= height - h and 0 <= left <= width - w
        shares.append(h * w / (height * width))
        ratios.append(w / h)
    assert 0.075 < min(shares) < 0.1 and 0.9 < max(shares) <= 1
    assert 0.74 < min(ratios) < 0.76 and 1.32 < max(ratios) < 1.345
    # A share of 1 of a wide image fits no aspect up to 4/3: the central part with that aspect.
    assert random_box(100, 300, (1.0, 1.0), (3 / 4, 4 / 3), rng) == (0, 83, 100, 133)
    assert random_box(300, 100, (1.0, 1.0), (3 / 4, 4 / 3), rng) == (83, 0, 133, 100)


def test_a_random_part_is_cropped_scaled_and_mirrored() -> None:
    pixels = np.random.default_rng(0).integers(256, size=(30, 40, 3), dtype=np.uint8)
    image, area, aspect = Image.fromarray(pixels), (0.3, 0.6), (0.75, 1.25)
    whole = torch.from_numpy(pixels).permute(2, 0, 1)
    sides = set()
    for seed in range(20):
        found = random_part(12, area, aspect, flip=True)(whole, random.Random(seed))
        rng = random.Random(seed)
        top, left, h, w = random_box(30, 40, area, aspect, rng)
        part = image.crop((left, top, left + w, top + h)).resize((12, 12), Image.Resampling.BILINEAR)
        expected = torch.from_numpy(np.array(part)).permute(2, 0, 1)
        mirrored = rng.random() < 0.5
        sides.add(mirrored)
        assert (found.int() - (expected.flip(2) if mirrored else expected).int()).abs().max() <= 2
        plain = random_part(12, area, aspect, flip=False)(whole, random.Random(seed))
        assert found.equal(plain.flip(2) if mirrored else plain)
    assert sides == {True, False}


def test_the_central_part_of_a_wide_image() -> None:
    # Black on the left half, white on the right: the centre holds half of each.
    pixels = np.zeros((20, 60, 3), np.uint8)
    pixels[:, 30:] = 255
    found = central_part(torch.from_numpy(pixels).permute(2, 0, 1), side=10, resize=10)
    assert found[:, :, :4].max() == 0 and found[:, :, 6:].min() == 255


def test_a_subset_is_spread_over_the_classes(tiny_imagenet: str) -> None:
    dataset = open_imagenet(tiny_imagenet, train_subset=6)
    assert [label for _, label in dataset.train] == [0, 0, 1, 1, 2, 2]
    assert open_imagenet(tiny_imagenet, train_subset=100).train_size == 12


def test_incomplete_folders_are_refused(tiny_imagenet: str) -> None:
    folder = Path(tiny_imagenet, "imagenet")
    with pytest.raises(ValueError, match="holds 3 classes, not 1000"):
        open_imagenet(tiny_imagenet, num_classes=1000)
    with pytest.raises(ValueError, match="area = "):
        open_imagenet(tiny_imagenet, area=[1.0, 0.08])
    with pytest.raises(ValueError, match="resize = 15 should not be below side = 16"):
        open_imagenet(tiny_imagenet, resize=15)
    (folder / "train/n00000001/train_3.JPEG").rename(folder / "spare")
    with pytest.raises(ValueError, match="holds 11 training images, not 12"):
        open_imagenet(tiny_imagenet)
    (folder / "train/n00000003").mkdir()
    with pytest.raises(ValueError, match="n00000003"):
        open_imagenet(tiny_imagenet)
    (folder / "spare").rename(folder / "train/n00000003/train_3.JPEG")
    with pytest.raises(ValueError, match="differ in their classes, such as n00000003"):
        open_imagenet(tiny_imagenet)


def test_the_digest_of_the_names(tiny_imagenet: str) -> None:
    folder = Path(tiny_imagenet, "imagenet")
    dataset = open_imagenet(tiny_imagenet)
    digest = names_digest(list(dataset.train), list(dataset.test), folder)
    assert open_imagenet(tiny_imagenet, digest=digest).train_size == 12
    (folder / "val/n00000000/val_0.JPEG").rename(folder / "val/n00000000/other.JPEG")
    with pytest.raises(ValueError, match="digest of the files' names"):
        open_imagenet(tiny_imagenet, digest=digest)


def test_a_broken_image_is_named(tiny_imagenet: str) -> None:
    path = Path(tiny_imagenet, "imagenet/train/n00000002/train_1.JPEG")
    path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(ValueError, match=r"n00000002/train_1\.JPEG is not a whole image"):
        open_imagenet(tiny_imagenet).batch(torch.tensor([9]), 0)


@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK", "progressive", "PNG", "P"])
def test_pixels_are_pillows(mode: str, tmp_path: Path) -> None:
    pixels = np.random.default_rng(3).integers(256, size=(33, 50, 3), dtype=np.uint8)
    image, path = Image.fromarray(pixels), tmp_path / "any.JPEG"  # ImageNet has a PNG and CMYK files under this name
    if mode in ("RGB", "progressive"):
        image.save(path, "JPEG", quality=80, progressive=mode == "progressive")
    elif mode in ("PNG", "P"):
        (image.quantize(64) if mode == "P" else image).save(path, "PNG")
    else:
        image.convert(mode).save(path, "JPEG")
    expected = torch.from_numpy(np.array(Image.open(path).convert("RGB"))).permute(2, 0, 1)
    assert image_files.decoded(str(path)).equal(expected)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(image_files, "_jpeg_decoder", lambda: None)
        assert image_files.decoded(str(path)).equal(expected)


def test_no_torn_image_passes(tmp_path: Path) -> None:
    """Wherever a file is cut off, it is refused, as Pillow refuses it: never half an image."""
    pixels = np.random.default_rng(4).integers(256, size=(40, 40, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "whole.JPEG", quality=85)
    content, path = (tmp_path / "whole.JPEG").read_bytes(), tmp_path / "torn.JPEG"
    for length in (*range(0, len(content) - 2, 37), len(content) - 3):
        path.write_bytes(content[:length])
        with pytest.raises(Unreadable, match=r"torn\.JPEG is not a whole image"):
            image_files._load(str(path), lambda image: image)


def test_a_run_on_streamed_images_repeats(tiny_imagenet: str, tmp_path: Path) -> None:
    changes = [f"dataset.{name}={value}" for name, value in TINY_IMAGENET.items()]
    results = []
    for runs in ("once", "twice"):
        given = ["dataset=imagenet", *changes, f"data.root={tiny_imagenet}", f"runs={tmp_path / runs}"]
        given += ["model.hidden=[8,8]", "schedule.epochs=2", "schedule.batch_size=5"]
        config = compose(given)
        execute(config, given)
        lines, _ = read_metrics(run_dir(tmp_path / runs, config) / "metrics.jsonl")
        results.append([{k: v for k, v in line.items() if not k.startswith("time/")} for line in lines])
    assert results[0] == results[1]
    assert [line["step"] for line in results[0]] == [3, 6]


# On a GPU


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_batches_are_made_on_the_device(tiny_imagenet: str) -> None:
    device = torch.device("cuda")
    streamed, resident = open_imagenet(tiny_imagenet), small_images(augment=crop_flip(2))
    expected = streamed.batch(torch.arange(6), 3)
    images, labels = streamed.to(device).batch(torch.arange(6), 3)
    assert images.is_cuda and torch.allclose(images.cpu(), expected[0], atol=1e-6) and labels.cpu().equal(expected[1])
    images, labels = resident.to(device).batch(torch.arange(6), 3)
    assert images.is_cuda and labels.is_cuda
    assert images.equal(resident.batch(torch.arange(6), 3)[0])
    raw = torch.randint(256, (8, 3, 32, 32), dtype=torch.uint8, device=device)
    assert crop_flip(4)(raw, torch.Generator(device).manual_seed(0)).is_cuda
