"""Training, validation and test images, and how one split is cut from another."""

import hashlib
from collections.abc import Sequence
from fractions import Fraction
from typing import NamedTuple, TypeVar

import torch

from ..checks import refuse
from .images import ImageSet
from .stream import ImageStream

Images = TypeVar("Images", bound=ImageSet)

# The share of training images that is for validation, unless a data set has its own.
VALIDATION = Fraction(1, 10)


class Splits(NamedTuple):
    """Data sets of (image, label): to train on, to choose between results, and to test the final one once."""

    train: ImageSet | ImageStream
    val: ImageSet | ImageStream
    test: ImageSet | ImageStream

    @property
    def classes(self) -> tuple[str, ...]:
        """The classes' names, in the order of the labels."""
        return self.train.classes

    def fingerprint(self) -> dict[str, str]:
        """What identifies the images of "train" and of "val": how many there are, and a digest of their
        classes and view; with random access, also of their keys and labels."""
        return {name: _fingerprint(part) for name, part in (("train", self.train), ("val", self.val))}


def _fingerprint(images: ImageSet | ImageStream) -> str:
    digest = hashlib.blake2b(repr([images.classes, images.view]).encode(), digest_size=8)
    if isinstance(images, ImageSet):
        digest.update(repr([images.keys, images.labels.tolist()]).encode())
    return f"{len(images)} images, {digest.hexdigest()}"


def refuse_same(*splits: str | None) -> None:
    """Raises ValueError if two of the splits that are named are the same."""
    named = [split for split in splits if split is not None]
    twice = next((split for split in named if named.count(split) > 1), None)
    if twice is not None:
        got, accepted = f"{twice} twice", "splits that share no images"
        refuse("train_split, val_split, test_split", got, accepted)


def cut(images: Images, counts: Sequence[int], seed: int) -> tuple[Images, Images]:
    """Cuts off ``counts[c]`` images of each class c. Returns (rest, cut), both in the data set's order.

    Which images are cut off depends on the seed and on their keys alone, by a hash of both. The cut is
    therefore the same on every machine and with every version of every library, whatever random numbers are
    drawn elsewhere.
    """
    # A file's name need not be UTF-8.
    names = (f"{seed}:{key}".encode(errors="surrogateescape") for key in images.keys)
    hashes = [hashlib.blake2b(name).digest() for name in names]
    left = list(counts)
    chosen = set()
    labels = images.labels.tolist()
    for row in sorted(range(len(images)), key=hashes.__getitem__):
        if left[labels[row]] > 0:
            left[labels[row]] -= 1
            chosen.add(row)
    rest = [row for row in range(len(images)) if row not in chosen]
    return images.select(rest), images.select(sorted(chosen))


def cut_share(images: Images, share: Fraction, seed: int) -> tuple[Images, Images]:
    """As :func:`cut`, for a share of all images, to which each class contributes in proportion (by largest
    remainders).

    Raises ValueError if nothing would be cut off, or if a class would be left without images.
    """
    sizes = torch.bincount(images.labels, minlength=len(images.classes)).tolist()
    exact = [share * size for size in sizes]
    counts = [int(e) for e in exact]
    by_remainder = sorted(range(len(sizes)), key=lambda c: counts[c] - exact[c])
    for c in by_remainder[: round(share * len(images)) - sum(counts)]:
        counts[c] += 1
    if sum(counts) == 0 or any(count == size > 0 for count, size in zip(counts, sizes, strict=True)):
        refuse(
            "data_dir",
            f"{len(images)} images of {len(sizes)} classes",
            f"enough of each class to cut off {float(share):.0%}, or a split of their own",
        )
    return cut(images, counts, seed)
