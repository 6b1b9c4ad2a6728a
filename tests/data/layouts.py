"""Miniature copies of public data sets, in the layouts in which their authors publish them."""

import hashlib
import io
import pickle
from pathlib import Path

import numpy
from PIL import Image
from scipy.io import savemat


def jpeg(seed: int, size: tuple[int, int] = (20, 16), mode: str = "RGB") -> bytes:
    """A file of smooth random colours. size: width, height."""
    pixels = numpy.random.default_rng(seed).integers(0, 256, (3, 3, 3), numpy.uint8)
    file = io.BytesIO()
    smooth = Image.fromarray(pixels).resize(size, Image.Resampling.BICUBIC)
    smooth.convert(mode).save(file, "JPEG", quality=90)
    return file.getvalue()


def write(path: Path, content: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)


# Photographs differ in size.
PHOTOS = (jpeg(0), jpeg(1, (16, 20)))


def folders(root: Path, counts: dict[str, int], size: tuple[int, int] = (20, 16), first: int = 0) -> Path:
    """Class folders with so many images each, all different."""
    for i, (name, count) in enumerate(counts.items()):
        for number in range(count):
            write(root / name / f"{number}.jpg", jpeg(first + 1000 * i + number, size))
    return root


def cifar(root: Path, kind: type, monkeypatch, per_file: int, classes: int) -> dict[str, numpy.ndarray]:
    """torchvision's CIFAR10 or CIFAR100 with ``per_file`` images in each file, whose checksums replace the
    real ones. Returns the pixels (N, 3, 32, 32) of "train" and "test"."""
    label_key, meta_key = ("labels", "label_names") if classes == 10 else ("fine_labels", "fine_label_names")
    rng = numpy.random.default_rng(0)
    pixels = {}

    def file(name: str, content: dict) -> str:
        data = pickle.dumps(content)
        write(root / kind.base_folder / name, data)
        return hashlib.md5(data).hexdigest()

    for part, attribute in (("train", "train_list"), ("test", "test_list")):
        files, parts = [], []
        for name, _ in getattr(kind, attribute):
            parts.append(rng.integers(0, 256, (per_file, 3072), numpy.uint8))
            labels = [i % classes for i in range(per_file)]
            files.append([name, file(name, {"data": parts[-1], label_key: labels})])
        monkeypatch.setattr(kind, attribute, files)
        pixels[part] = numpy.concatenate(parts).reshape(-1, 3, 32, 32)
    names = [f"class {i}" for i in range(classes)]
    checksum = file(kind.meta["filename"], {meta_key: names})
    monkeypatch.setattr(kind, "meta", {**kind.meta, "md5": checksum})
    return pixels


def caltech(root: Path, per_class: int = 62, classes: int = 257) -> Path:
    for c in range(1, classes + 1):
        folder = root / "256_ObjectCategories" / f"{c:03d}.thing-{c}"
        folder.mkdir(parents=True)
        for number in range(1, per_class + 1):
            (folder / f"{c:03d}_{number:04d}.jpg").write_bytes(PHOTOS[number % 2])
    # What the published archive has besides images.
    write(root / "256_ObjectCategories" / "056.thing-56" / "greg" / "vision309", b"")
    write(root / "256_ObjectCategories" / "198.thing-198" / "RENAME2", b"#!/bin/sh")
    return root


def cub(root: Path, train: int = 10, test: int = 2, classes: int = 200) -> Path:
    """In CUB_200_2011/, as the archive unpacks."""
    folder = root / "CUB_200_2011"
    images, labels, split = [], [], []
    for c in range(1, classes + 1):
        for number in range(train + test):
            path = f"{c:03d}.Bird_{c}/Bird_{c}_{number:04d}_{c * 7}.jpg"
            write(folder / "images" / path, PHOTOS[number % 2])
            images.append(f"{len(images) + 1} {path}")
            labels.append(f"{len(images)} {c}")
            split.append(f"{len(images)} {int(number < train)}")
    for name, lines in (("images", images), ("image_class_labels", labels), ("train_test_split", split)):
        (folder / f"{name}.txt").write_text("\n".join(lines) + "\n")
    return root


def dogs(root: Path, train: int = 10, test: int = 3, classes: int = 120) -> Path:
    for part, numbers in (("train", range(train)), ("test", range(train, train + test))):
        paths, labels = [], []
        for c in range(1, classes + 1):
            for number in numbers:
                paths.append(f"n{c:08d}-Dog_{c}/n{c:08d}_{number}.jpg")
                labels.append(c)
                write(root / "Images" / paths[-1], PHOTOS[number % 2])
        cells = numpy.empty((len(paths), 1), object)
        cells[:, 0] = paths
        (root / "lists").mkdir(exist_ok=True)
        column = numpy.array(labels, numpy.uint8)[:, None]
        savemat(root / "lists" / f"{part}_list.mat", {"file_list": cells, "labels": column})
    return root
