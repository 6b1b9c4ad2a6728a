"""Training, validation and test images, and how a split is cut from another."""

import hashlib
from collections.abc import Sequence
from fractions import Fraction
from typing import NamedTuple, TypeVar

import torch

from ..checks import refuse
from .images import ImageSet
from .stream import ImageStream

Images = TypeVar("Images", bound=ImageSet)

# Of the training images, where a set says nothing else.
VALIDATION = Fraction(1, 10)


class Splits(NamedTuple):
    """Data sets of (image, label): what trains, what chooses between results, what is looked at once."""

    train: ImageSet | ImageStream
    val: ImageSet | ImageStream
    test: ImageSet | ImageStream

    @property
    def classes(self) -> tuple[str, ...]:
        """Their names, in the order of the labels."""
        return self.train.classes

    def fingerprint(self) -> dict[str, str]:
        """Of what trains and validates: how many images, and a digest of what is shown of them, and of the
        names and labels of those with random access."""
        return {name: _fingerprint(part) for name, part in (("train", self.train), ("val", self.val))}


def _fingerprint(images: ImageSet | ImageStream) -> str:
    digest = hashlib.blake2b(repr([images.classes, images.view]).encode(), digest_size=8)
    if isinstance(images, ImageSet):
        digest.update(repr([images.keys, images.labels.tolist()]).encode())
    return f"{len(images)} images, {digest.hexdigest()}"


def refuse_same(*splits: str | None) -> None:
    """Raises ValueError where two of the splits that are named are one."""
    named = [split for split in splits if split is not None]
    twice = next((split for split in named if named.count(split) > 1), None)
    if twice is not None:
        got, accepted = f"{twice} twice", "splits that share no images"
        refuse("train_split, val_split, test_split", got, accepted)


def cut(images: Images, counts: Sequence[int], seed: int) -> tuple[Images, Images]:
    """(rest, cut): ``counts[c]`` images of each class c are cut off, both parts in the set's own order.

    Which ones depends on the seed and the images' keys alone: an image goes by the hash of its key, so that
    the cut is the same on every machine, with every version of every library, whatever is drawn elsewhere.
    """
    hashes = [hashlib.blake2b(f"{seed}:{key}".encode()).digest() for key in images.keys]
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
    """The same for a share of the whole, which each class gives in proportion, by largest remainders.

    Raises ValueError where nothing would be cut or a class would be left without images.
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
