"""Where the public datasets come from: their files, digests and mirrors. Plain data, free of torch, shared by
`scripts/fetch_data.py` (which downloads) and by the readers (which check what they read)."""

from dataclasses import dataclass


@dataclass(frozen=True)
class File:
    """One file of a dataset.

    `md5` is its publisher's digest of the file as served. `content_md5` is that of what a .gz file holds: the same
    data compressed anew is still the same data.
    """

    name: str
    md5: str
    content_md5: str | None = None


@dataclass(frozen=True)
class Source:
    """A dataset's files, the folder they belong in below the data root, and the mirrors that serve them.

    `alternatives`: other files with the same content, each of which serves in place of `files`; they are not fetched.
    """

    folder: str
    mirrors: tuple[str, ...]
    files: tuple[File, ...]
    alternatives: tuple[File, ...] = ()

    def urls(self, file: File) -> list[str]:
        """The file's address on every mirror, the preferred one first."""
        return [mirror + file.name for mirror in self.mirrors]


SOURCES: dict[str, Source] = {
    # LeCun, Cortes and Burges; the digests of the files are those in torchvision.datasets.MNIST.
    "mnist": Source(
        folder="mnist",
        mirrors=(
            "https://ossci-datasets.s3.amazonaws.com/mnist/",
            "https://storage.googleapis.com/cvdf-datasets/mnist/",
        ),
        files=(
            File("train-images-idx3-ubyte.gz", "f68b3c2dcbeaaa9fbdd348bbdeb94873", "6bbc9ace898e44ae57da46a324031adb"),
            File("train-labels-idx1-ubyte.gz", "d53e105ee54ea40749a09fcbcd1e9432", "a25bea736e30d166cdddb491f175f624"),
            File("t10k-images-idx3-ubyte.gz", "9fb629c4189551a2d022fa330f9573f3", "2646ac647ad5339dbf082846283269ea"),
            File("t10k-labels-idx1-ubyte.gz", "ec29112dd5afa0611ce80d1b7f02629c", "27ae3e4e09519cfbb04c329615203637"),
        ),
    ),
    # Krizhevsky 2009, the exact pixels; the digests are those of https://www.cs.toronto.edu/~kriz/cifar.html, for the
    # Python versions also in torchvision.datasets.
    "cifar10": Source(
        folder="cifar10",
        mirrors=("https://www.cs.toronto.edu/~kriz/",),
        files=(File("cifar-10-python.tar.gz", "c58f30108f718f92721af3b95e74349a"),),
        alternatives=(File("cifar-10-binary.tar.gz", "c32a1d4ab5d03f1284b67883e8d87530"),),
    ),
    "cifar100": Source(
        folder="cifar100",
        mirrors=("https://www.cs.toronto.edu/~kriz/",),
        files=(File("cifar-100-python.tar.gz", "eb9058c3a382ffc7106e4002c42a8d85"),),
        alternatives=(File("cifar-100-binary.tar.gz", "03b5dce01913d631647c71ecec9e9cb8"),),
    ),
}
