"""The paper's sets, from miniature copies in their published layouts."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from torchvision.datasets import CIFAR10, CIFAR100

from roli_fast.data import Loader, load, named

from .layouts import caltech, cifar, cub, dogs, write


def sizes(splits):
    return tuple(len(split) for split in splits)


def keys(splits):
    return [key for split in splits for key in split.keys]


@pytest.mark.parametrize(("name", "kind", "classes"), [("cifar10", CIFAR10, 10), ("cifar100", CIFAR100, 100)])
def test_cifar(name, kind, classes, tmp_path, monkeypatch):
    per_file = 2_000 // len(kind.train_list)
    pixels = cifar(tmp_path, kind, monkeypatch, per_file, classes)
    splits = load(name, tmp_path)
    assert sizes(splits) == (1_800, 200, per_file)
    assert splits.classes == tuple(f"class {i}" for i in range(classes))
    assert torch.equal(torch.bincount(splits.val.labels), torch.full((classes,), 200 // classes))
    for split, source in ((splits.train, "train"), (splits.val, "train"), (splits.test, "test")):
        rows = [int(key) for key in split.keys]
        assert torch.equal(split.images, torch.from_numpy(pixels[source][rows]))
        assert torch.equal(split.labels, torch.tensor(rows) % per_file % classes)
    assert set(splits.train.keys).isdisjoint(splits.val.keys)
    # No augmentation: in training, too, the images are what they are.
    images, labels, index = next(Loader(splits.train, 16, train=True).epoch(0))
    assert torch.equal(images, splits.train.images[index])
    assert torch.equal(labels, splits.train.labels[index])
    assert images.dtype == torch.uint8


def test_cifar_at_another_size(tmp_path, monkeypatch):
    cifar(tmp_path, CIFAR10, monkeypatch, 20, 10)
    splits = load("cifar10", tmp_path, input_size=48, crop_pct=0.75, input_img_mode="L", hflip=0.0)
    assert splits.train[0][0].shape == (1, 48, 48)
    assert next(iter(Loader(splits.train, 4)))[0].shape == (4, 1, 48, 48)


def test_caltech256(tmp_path):
    splits = load("caltech256", caltech(tmp_path))
    assert sizes(splits) == (14_649, 771, 2 * 257)  # the paper's, but for the test images that are not there
    assert len(set(keys(splits))) == 62 * 257
    assert splits.classes[1] == "002.thing-2"
    assert len(splits.classes) == 257
    for split, each in zip(splits, (57, 3, 2), strict=True):
        assert torch.equal(torch.bincount(split.labels), torch.full((257,), each))
        assert [int(key[:3]) - 1 for key in split.keys] == split.labels.tolist()

    for number in (7, 9):
        (tmp_path / "256_ObjectCategories" / "003.thing-3" / f"003_{number:04d}.jpg").unlink()
    with pytest.raises(ValueError, match=r"60 images of 003\.thing-3 .* accepted: more than 60 of each"):
        load("caltech256", tmp_path)


def test_cub200(tmp_path):
    splits = load("cub200", cub(tmp_path))
    assert sizes(splits) == (1_800, 200, 400)
    assert len(set(keys(splits))) == 2_400
    published = [int(Path(key).stem.split("_")[2]) >= 10 for key in splits.test.keys]
    assert all(published)
    assert splits.classes[:2] == ("001.Bird_1", "002.Bird_2")
    assert sizes(load("cub200", tmp_path / "CUB_200_2011")) == sizes(splits)


def test_stanford_dogs(tmp_path):
    splits = load("stanford_dogs", dogs(tmp_path))
    assert sizes(splits) == (1_080, 120, 360)
    assert all(int(Path(key).stem.split("_")[1]) >= 10 for key in splits.test.keys)
    assert splits.classes[119] == "n00000120-Dog_120"
    for file in (tmp_path / "lists").iterdir():  # as the archive of the lists unpacks where no folder is made
        shutil.move(file, tmp_path)
    (tmp_path / "lists").rmdir()
    assert keys(load("stanford_dogs", tmp_path)) == keys(splits)


def test_photos_are_shown_as_in_the_paper(tmp_path):
    splits = load("stanford_dogs", dogs(tmp_path))
    image, label = splits.test[0]
    assert (image.shape, image.dtype, label) == ((3, 224, 224), torch.uint8, 0)
    view = splits.train.view
    assert (view.resize, view.crop, view.hflip) == (256, 224, 0.5)
    small = load("stanford_dogs", tmp_path, input_size=8, crop_pct=0.5, hflip=0.0, input_img_mode="L")
    assert small.train[0][0].shape == (1, 8, 8)
    assert small.train.view.hflip == 0.0


def test_the_papers_own_draw_is_taken_where_its_files_are(tmp_path):
    cub(tmp_path, train=3, test=1)
    folder = tmp_path / "CUB_200_2011"
    draw: dict[str, dict[str, int]] = {"train": {}, "val": {}, "test": {}}
    for file in sorted((folder / "images").glob("*/*.jpg")):
        c, number = int(file.name.split("_")[1]), int(file.name.split("_")[2])
        # Not the published split; classes are numbered from 1.
        part = ("test", "train", "val", "train")[number]
        draw[part][f"{file.parent.name}/{file.name}"] = c
    for part, entries in draw.items():
        (folder / f"{part}.json").write_text(json.dumps(entries))
    splits = load("cub200", tmp_path)
    for part in ("train", "val", "test"):
        split = getattr(splits, part)
        assert split.keys == list(draw[part])
        assert split.labels.tolist() == [c - 1 for c in draw[part].values()]


def test_the_split_seed_moves_what_validates_and_nothing_else(tmp_path):
    cub(tmp_path)
    first, second = load("cub200", tmp_path), load("cub200", tmp_path, split_seed=1)
    assert first.test.keys == second.test.keys
    assert first.val.keys != second.val.keys


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("cifar10", ["CIFAR-10", "cifar-10-batches-py/", "download=True", "cs.toronto.edu"]),
        ("cifar100", ["CIFAR-100", "cifar-100-python/", "download=True"]),
        ("caltech256", ["Caltech256", "256_ObjectCategories/", "download=True", "data.caltech.edu"]),
        ("cub200", ["CUB-200-2011", "train_test_split.txt", "by hand", "vision.caltech.edu"]),
        ("stanford_dogs", ["Stanford Dogs", "train_list.mat", "by hand", "vision.stanford.edu"]),
    ],
)
def test_a_missing_set_says_where_to_get_it_and_how_it_should_lie(name, words, tmp_path):
    with pytest.raises(FileNotFoundError) as missing:
        load(name, tmp_path / "nowhere")
    for word in ("data_dir: got", str(tmp_path / "nowhere"), *words):
        assert word in str(missing.value)
    assert not (tmp_path / "nowhere").exists()
    with pytest.raises(ValueError, match="data_dir: got None"):
        load(name)


def test_a_list_that_is_missing_is_named(tmp_path):
    cub(tmp_path, train=2, test=1)
    (tmp_path / "CUB_200_2011" / "train_test_split.txt").unlink()
    with pytest.raises(
        FileNotFoundError, match=r"data_dir: got .*train_test_split\.txt.*accepted: .*CUB-200-2011"
    ):
        load("cub200", tmp_path)


@pytest.mark.parametrize(
    ("name", "make", "file"),
    [("cub200", cub, "image_class_labels.txt"), ("stanford_dogs", dogs, "train_list.mat")],
)
def test_half_a_list_is_an_error_of_the_set(name, make, file, tmp_path):
    make(tmp_path, train=2, test=1)
    (found,) = tmp_path.rglob(file)
    write(found, found.read_bytes()[: found.stat().st_size // 2])
    with pytest.raises(FileNotFoundError, match=r"data_dir: got .*its lists cannot be read"):
        load(name, tmp_path)


@pytest.mark.parametrize(
    ("name", "make"), [("caltech256", caltech), ("cub200", cub), ("stanford_dogs", dogs)]
)
def test_a_set_with_missing_classes_is_refused(name, make, tmp_path):
    make(tmp_path, classes=7)
    with pytest.raises(ValueError, match=r"data_dir: got .* with 7 classes, accepted: .* with \d+"):
        load(name, tmp_path)


def test_downloads_happen_when_asked_for_and_only_then(tmp_path, monkeypatch):
    fetched = []

    def fetch(self):
        fetched.append(type(self).__name__)
        cifar(Path(self.root), CIFAR10, monkeypatch, 20, 10)

    monkeypatch.setattr(CIFAR10, "download", fetch)
    with pytest.raises(FileNotFoundError):
        load("cifar10", tmp_path)
    assert fetched == []
    assert len(load("cifar10", tmp_path, download=True).train) == 90
    assert fetched == ["CIFAR10"]


def test_a_download_that_fails_or_cannot_be_says_so(tmp_path, monkeypatch):
    def fails(self):
        raise OSError("no route to host")

    monkeypatch.setattr(CIFAR10, "download", fails)
    with pytest.raises(FileNotFoundError, match=r"the download failed: no route to host.*cs\.toronto\.edu"):
        load("cifar10", tmp_path, download=True)
    with pytest.raises(FileNotFoundError, match=r"no library fetches it.*by hand"):
        load("cub200", tmp_path, download=True)


def test_every_set_has_a_name():
    assert named.NAMES == ("cifar10", "cifar100", "caltech256", "cub200", "stanford_dogs")


@pytest.mark.parametrize("workers", [0, 1])
def test_a_broken_image_is_named(workers, tmp_path):
    splits = load("stanford_dogs", dogs(tmp_path, train=10, test=2))
    broken = tmp_path / "Images" / splits.test.keys[9]
    content = broken.read_bytes()
    write(broken, content[: len(content) * 3 // 4])  # the header is whole
    batches = iter(Loader(splits.test, 4, workers=workers))
    assert [len(next(batches)[0]) for _ in range(2)] == [4, 4]
    with pytest.raises(OSError, match=rf"{broken}: got .*, accepted: an image that can be decoded"):
        next(batches)
