"""Image folders: which folder is which split, and what is refused."""

import itertools
import os
import struct
import subprocess
import sys

import numpy
import pytest
import torch
from PIL import Image

from roli_fast.data import Loader, images, load
from roli_fast.data.images import Pictures, StoredImages

from .layouts import folders, jpeg, write

COUNTS = {"cat": 20, "dog": 20, "owl": 20}


def sizes(splits):
    return tuple(len(split) for split in splits)


def test_train_val_and_test(tmp_path):
    folders(tmp_path / "train", COUNTS)
    folders(tmp_path / "val", {"cat": 3, "owl": 2}, first=10_000)
    folders(tmp_path / "test", {"owl": 4}, first=20_000)
    splits = load("folder", tmp_path)
    assert sizes(splits) == (60, 5, 4)
    assert splits.classes == ("cat", "dog", "owl")
    assert splits.val.labels.tolist() == [0, 0, 0, 2, 2]  # numbered as in training, though a class is missing
    assert splits.test.labels.tolist() == [2, 2, 2, 2]
    assert splits.test.keys[0] == "owl/0.jpg"


@pytest.mark.parametrize(
    ("held_out", "named"),
    [("val", {"test_split": "val"}), ("test", {"val_split": "test"}), ("test", {"test_split": "test"})],
)
def test_a_folder_serves_one_purpose(tmp_path, held_out, named):
    """What is named for one split is not found for another: no image both validates and tests."""
    folders(tmp_path / "train", COUNTS)
    folders(tmp_path / held_out, COUNTS, first=10_000)
    splits = load("folder", tmp_path, **named)
    paths = [{part.source.name(row) for row in part.rows} for part in splits]
    for one, other in itertools.combinations(paths, 2):
        assert one
        assert one.isdisjoint(other)
    (purpose,) = named
    assert len(getattr(splits, purpose.removesuffix("_split"))) == 60


def test_a_split_that_is_named_twice(tmp_path):
    folders(tmp_path / "train", COUNTS)
    folders(tmp_path / "val", COUNTS, first=10_000)
    accepted = "train_split, val_split, test_split: got .*val twice, accepted: splits that share no images"
    with pytest.raises(ValueError, match=accepted):
        load("folder", tmp_path, val_split="val", test_split="val")
    for other in ("./train", "val/../train"):
        with pytest.raises(ValueError, match="train twice, accepted: splits that share no images"):
            load("folder", tmp_path, train_split="train", val_split=other)


def test_the_fingerprint_tells_what_is_shown(tmp_path):
    folders(tmp_path, COUNTS)
    shown = [{"input_size": 8}, {"input_size": 8}, {"input_size": 6}, {"input_size": 8, "hflip": 0.1}]
    found = [load("folder", tmp_path, **options).fingerprint() for options in shown]
    assert found[0] == found[1]
    assert found[2] != found[0] != found[3]


def test_train_and_test(tmp_path):
    folders(tmp_path / "train", COUNTS)
    folders(tmp_path / "test", COUNTS, first=10_000)
    splits = load("", tmp_path)
    assert sizes(splits) == (54, 6, 60)
    assert torch.bincount(splits.val.labels).tolist() == [2, 2, 2]
    assert set(splits.train.keys).isdisjoint(splits.val.keys)


@pytest.mark.parametrize("name", ["val", "validation"])
def test_what_alone_is_held_out_tests(name, tmp_path):
    folders(tmp_path / "train", COUNTS)
    folders(tmp_path / name, {"cat": 7}, first=10_000)
    assert sizes(load("folder", tmp_path)) == (54, 6, 7)


def test_a_folder_of_class_folders(tmp_path):
    splits = load("folder", folders(tmp_path, COUNTS))
    assert sizes(splits) == (43, 5, 12)
    assert len({key for split in splits for key in split.keys}) == 60


def test_splits_by_name(tmp_path):
    folders(tmp_path / "a", COUNTS)
    folders(tmp_path / "b", {"cat": 3}, first=10_000)
    folders(tmp_path / "c", {"dog": 4}, first=20_000)
    assert sizes(load("folder", tmp_path, train_split="a", val_split="b", test_split="c")) == (60, 3, 4)
    with pytest.raises(FileNotFoundError, match="val_split: got d, accepted: a folder in"):
        load("folder", tmp_path, train_split="a", val_split="d", test_split="c")


def test_images_are_read_as_they_are(tmp_path):
    """Grey and transparent ones become RGB; sizes that differ need an input_size."""
    folders(tmp_path, COUNTS)
    write(tmp_path / "cat" / "100.jpg", jpeg(7, mode="L"))
    Image.open(tmp_path / "dog" / "0.jpg").convert("RGBA").save(tmp_path / "dog" / "100.png")
    splits = load("folder", tmp_path)
    for split in splits:
        loader = Loader(split, len(split))
        assert isinstance(loader.images, StoredImages)
        for key, image in zip(split.keys, next(iter(loader))[0], strict=True):
            expected = torch.tensor(list(Image.open(tmp_path / key).convert("RGB").tobytes()))
            assert torch.equal(image.permute(1, 2, 0).flatten().long(), expected)


def test_sizes_that_differ(tmp_path):
    folders(tmp_path / "train", COUNTS)
    folders(tmp_path / "test", {"cat": 2})
    write(tmp_path / "train" / "owl" / "odd.jpg", jpeg(7, (30, 20)))
    splits = load("folder", tmp_path)
    with pytest.raises(ValueError, match=r"got None, but .* has 20x16 and .*odd\.jpg has 30x20 pixels"):
        [Loader(split, 4) for split in splits]
    splits = load("folder", tmp_path, input_size=14, crop_pct=0.875)
    assert splits.train[0][0].shape == (3, 14, 14)
    assert {type(Loader(split, 4).images) for split in splits} == {Pictures, StoredImages}


def test_what_is_too_large_stays_on_disk_and_gives_the_same(tmp_path, monkeypatch):
    folders(tmp_path, COUNTS)
    options = {"input_size": 12, "crop_pct": 0.75}
    kept, read = (load("folder", tmp_path, **options).train for _ in range(2))
    from_memory = Loader(kept, 8, train=True)
    monkeypatch.setattr(images, "MEMORY", from_memory.images.images.numel() - 1)
    from_disk = Loader(read, 8, train=True, workers=0)
    assert (type(from_memory.images), type(from_disk.images)) == (StoredImages, Pictures)
    for a, b in zip(from_memory.epoch(1), from_disk.epoch(1), strict=True):
        assert all(torch.equal(x, y) for x, y in zip(a, b, strict=True))
    for i, (image, label) in enumerate(from_memory.images):
        assert torch.equal(image, read[i][0])
        assert label == read[i][1]


def test_sizes_are_found_out_while_training_where_the_set_is_too_large_to_look(tmp_path, monkeypatch):
    folders(tmp_path, COUNTS)
    write(tmp_path / "owl" / "odd.jpg", jpeg(7, (30, 20)))
    monkeypatch.setattr(images, "MEMORY", 0)
    splits = load("folder", tmp_path)
    loaders = [Loader(split, 100, workers=0) for split in splits]
    with pytest.raises(ValueError, match=r"input_size: got None, but .*odd\.jpg has 30x20 pixels"):
        list(itertools.chain(*loaders))


@pytest.mark.parametrize(
    ("prepare", "error", "message"),
    [
        (lambda d: None, FileNotFoundError, "which is no folder, accepted: a folder of class folders"),
        (lambda d: d.mkdir(), FileNotFoundError, "got no image below"),
        (lambda d: folders(d / "test", COUNTS), ValueError, "with test/ alone, accepted: train/ as well"),
        (
            lambda d: write(folders(d, COUNTS) / "x.jpg", jpeg(0)),
            ValueError,
            r"x\.jpg, outside a class",
        ),
        (
            lambda d: folders(folders(d / "train", COUNTS).parent / "test", {"fox": 2, "cat": 2}),
            ValueError,
            "test with fox, accepted: the 3 classes of the training images",
        ),
        (
            lambda d: folders(d, {"cat": 1, "dog": 1}),
            ValueError,
            "2 images of 2 classes, accepted: enough",
        ),
    ],
)
def test_a_folder_that_is_none(prepare, error, message, tmp_path):
    prepare(tmp_path / "set")
    with pytest.raises(error, match=message):
        load("folder", tmp_path / "set")


def test_a_broken_image_is_named_when_it_is_decoded(tmp_path):
    folders(tmp_path, COUNTS)
    broken = tmp_path / "dog" / "5.jpg"
    write(broken, b"no image")
    splits = load("folder", tmp_path)
    with pytest.raises(OSError, match=rf"{broken}: got .*, accepted: an image that can be decoded"):
        [Loader(split, 4) for split in splits]


def greys(folder, values, suffix):
    """Two classes of ten pictures each that hold these values."""
    for name in ("a", "b"):
        (folder / name).mkdir()
        for number in range(10):
            Image.fromarray(values).save(folder / name / f"{number}.{suffix}")


@pytest.mark.parametrize("suffix", ["png", "tif", "pgm"])
def test_grey_pixels_of_sixteen_bits_keep_their_brightness(suffix, tmp_path):
    values = numpy.linspace(0, 65535, 64).astype(numpy.uint16).reshape(8, 8)
    greys(tmp_path, values, suffix)
    image, _ = load("folder", tmp_path, input_img_mode="L").train[0]
    assert (image[0].float() - torch.tensor(values / 257)).abs().max() <= 0.5


def of_twelve_bits(values):
    """A TIFF of these values, two in three bytes, as microscopes save it. PIL writes none."""
    pairs = values.reshape(-1, 2).tolist()
    pixels = b"".join(((first << 12) + second).to_bytes(3, "big") for first, second in pairs)
    height, width = values.shape
    entries = {
        256: width,
        257: height,
        258: 12,
        259: 1,
        262: 1,
        273: 8,
        277: 1,
        278: height,
        279: len(pixels),
    }
    tags = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in entries.items())
    return struct.pack("<2sHI", b"II", 42, 8 + len(pixels)) + pixels + struct.pack("<H", 9) + tags + bytes(4)


def test_grey_pixels_of_twelve_bits_keep_their_brightness(tmp_path):
    values = numpy.linspace(0, 4095, 64).astype(int).reshape(8, 8)
    for name in ("a", "b"):
        for number in range(10):
            write(tmp_path / name / f"{number}.tif", of_twelve_bits(values))
    image, _ = load("folder", tmp_path, input_img_mode="L").train[0]
    assert (image[0].float() - torch.tensor(values / 4095 * 255)).abs().max() <= 0.5


def test_bytes_in_thirty_two_bits_keep_their_brightness(tmp_path):
    """And other values in as many, of which white could be any, are refused."""
    values = numpy.linspace(0, 255, 64).astype(numpy.int32).reshape(8, 8)
    greys(tmp_path, values, "tif")
    image, _ = load("folder", tmp_path, input_img_mode="L").train[0]
    assert image[0].tolist() == values.tolist()
    for wrong, said in ((values * 16, "from 0 to 4080"), (values - 1, "from -1 to 254")):
        for path in tmp_path.glob("*/*.tif"):
            Image.fromarray(wrong).save(path)
        with pytest.raises(OSError, match=rf"tif: got grey values {said}, of which white is not known"):
            _ = load("folder", tmp_path, input_img_mode="L").train[0]


def test_splits_are_found_in_any_case(tmp_path):
    """Or their images would be pooled, and cut anew."""
    folders(tmp_path / "Training", COUNTS)
    folders(tmp_path / "Testing", {"cat": 3, "dog": 3, "owl": 3}, first=10_000)
    assert sizes(load("folder", tmp_path)) == (54, 6, 9)


def test_a_file_name_that_is_not_utf8(tmp_path):
    folders(tmp_path, COUNTS)
    try:
        (tmp_path / "cat" / "0.jpg").rename(tmp_path / "cat" / os.fsdecode(b"caf\xe9.jpg"))
    except OSError:
        pytest.skip("this disk has no such names")
    splits = load("folder", tmp_path)
    assert sum(sizes(splits)) == 60
    assert len(splits.fingerprint()) == 2


def test_which_folder_is_the_class(tmp_path):
    """The last one, below any superclasses; what could be read otherwise is refused."""
    folders(tmp_path / "animal", {"cat": 20, "owl": 20})
    folders(tmp_path / "thing", {"car": 20})
    assert load("folder", tmp_path).classes == ("car", "cat", "owl")
    folders(tmp_path, {"dog": 20})
    with pytest.raises(
        ValueError, match=r"with images in .* and in .*, accepted: class folders at one depth"
    ):
        load("folder", tmp_path)
    folders(tmp_path / "days" / "cat", {"day": 20})
    folders(tmp_path / "days" / "dog", {"day": 20})
    with pytest.raises(
        ValueError, match=r"with cat/day and dog/day, of one name, accepted: class folders of"
    ):
        load("folder", tmp_path / "days")


def test_a_class_may_have_a_splits_name(tmp_path):
    folders(tmp_path, {"Bus": 20, "Train": 20})
    assert load("folder", tmp_path).classes == ("Bus", "Train")


def test_images_of_a_split_without_classes(tmp_path):
    """Are no class of the split's name."""
    folders(tmp_path, {"train": 20, "test": 20})
    with pytest.raises(ValueError, match=r"train/0.jpg, outside a class folder, accepted: images in class"):
        load("folder", tmp_path)


def test_other_kinds_of_pictures_and_what_is_no_class(tmp_path):
    folders(tmp_path, {"cat": 20, ".thumbnails": 20})
    (tmp_path / "owl").mkdir()
    for number in range(20):
        suffix = ("bmp", "webp")[number % 2]
        Image.new("RGB", (8, 8), (number, 0, 0)).save(tmp_path / "owl" / f"{number}.{suffix}")
        (tmp_path / "owl" / f"{number}.txt").write_text("an owl")
    splits = load("folder", tmp_path)
    assert splits.classes == ("cat", "owl")
    assert sum(sizes(splits)) == 40


def test_classes_have_the_same_numbers_in_every_process(tmp_path):
    """Also those that are told apart by nothing but case or zeros, whose natural order says nothing."""
    folders(tmp_path, dict.fromkeys(("a", "A", "01", "1", "10", "2"), 20))
    code = "import sys; from roli_fast.data import load; print(*load('folder', sys.argv[1]).classes)"
    for seed in ("0", "3"):
        command, hashing = [sys.executable, "-c", code, str(tmp_path)], os.environ | {"PYTHONHASHSEED": seed}
        shown = subprocess.run(command, env=hashing, text=True, check=True, capture_output=True).stdout
        assert shown.split() == ["01", "1", "2", "10", "A", "a"]
