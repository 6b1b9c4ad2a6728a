"""Sets of timm's factory: torchvision's, and streams."""

import importlib.util
import io

import numpy
import pytest
import torch
from PIL import Image
from timm.data import ImageDataset, IterableImageDataset
from torchvision.datasets import CIFAR10, ImageFolder

from roli_fast.data import ImageStream, Loader, StoredImages, load, timm_sets
from roli_fast.data.view import View

from .layouts import cifar, folders


def test_torchvisions_sets(tmp_path, monkeypatch):
    pixels = cifar(tmp_path, CIFAR10, monkeypatch, 20, 10)
    splits = load("torch/cifar10", tmp_path)
    assert [len(split) for split in splits] == [90, 10, 20]
    images, labels, _ = next(iter(Loader(splits.test, 20)))
    assert torch.equal(images, torch.from_numpy(pixels["test"]))
    assert labels.tolist() == list(range(10)) * 2
    assert splits.classes[3] == "class 3"
    same = load("cifar10", tmp_path)
    for part in ("train", "val"):  # one cut, one content
        assert getattr(splits, part).keys == getattr(same, part).keys
        assert torch.equal(getattr(splits, part)[4][0], getattr(same, part)[4][0])


def test_its_splits_have_its_names(tmp_path):
    for split, count in (("a", 5), ("b", 6), ("c", 7)):
        folders(tmp_path / split, {"cat": count, "dog": count})
    splits = load("torch/folder", tmp_path, train_split="a", val_split="b", test_split="c")
    assert [len(split) for split in splits] == [10, 12, 14]
    assert splits.classes == ("cat", "dog")


def test_classes_have_one_number_in_all_splits(tmp_path):
    """timm numbers the folders of each split by themselves."""
    folders(tmp_path / "train", {"cat": 20, "dog": 20, "owl": 20})
    folders(tmp_path / "test", {"dog": 5, "owl": 5})
    with pytest.raises(ValueError, match=r"got test images whose classes differ .* in cat, accepted: splits"):
        load("torch/image_folder", tmp_path, test_split="test")
    assert load("folder", tmp_path).test.labels.unique().tolist() == [1, 2]


def test_a_split_that_is_named_twice(tmp_path):
    folders(tmp_path / "train", {"cat": 20, "dog": 20})
    folders(tmp_path / "test", {"cat": 5, "dog": 5})
    with pytest.raises(ValueError, match="got test twice"):
        load("torch/image_folder", tmp_path, val_split="test")


@pytest.mark.parametrize(
    ("name", "package"),
    [
        ("hfds/food101", "datasets"),
        ("hfids/food101", "datasets"),
        ("wds/imagenet", "webdataset"),
        ("tfds/food101", "tensorflow"),
    ],
)
def test_a_missing_package_is_named(name, package, tmp_path, monkeypatch):
    there = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda n: None if n == package else there(n))
    with pytest.raises(ImportError, match=f"{name} needs a package: pip install {package}"):
        load(name, tmp_path)


@pytest.mark.parametrize(
    ("name", "error", "message"),
    [
        ("torch/nonsense", ValueError, "name: got torch/nonsense .*accepted: a set that timm"),
        (
            "torch/mnist",
            FileNotFoundError,
            "data_dir: got .*accepted: where split train of torch/mnist lies",
        ),
        ("torch/qmnist", FileNotFoundError, "data_dir: got "),
        ("nonsense", ValueError, r"name: got 'nonsense', accepted: cifar10, .*folder, torch/\.\.\."),
        ("nonsense/x", ValueError, "name: got 'nonsense/x'"),
        ("torch", ValueError, "name: got 'torch'"),
    ],
)
def test_a_set_that_is_not_there_or_unknown(name, error, message, tmp_path):
    with pytest.raises(error, match=message):
        load(name, tmp_path)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_classes": 3}, "num_classes: got 3, accepted: 10, as many as digits has"),
        ({"input_img_mode": "CMYK"}, "input_img_mode: got 'CMYK', accepted: RGB or L"),
        ({"val_split": "val"}, "got None, val, None, accepted: None: the splits of digits are fixed"),
        ({"input_size": 0}, "input_size: got 0"),
        ({"input_size": 8, "crop_pct": 1.5}, r"crop_pct: got 1\.5, accepted: a number above 0 and up to 1"),
        ({"input_size": 8}, "input_size, hflip: got 8, None, accepted: None: digits are 8x8 pixels"),
        ({"hflip": 0.5}, r"input_size, hflip: got None, 0\.5, accepted: None"),
        ({"hflip": -0.5}, r"hflip: got -0\.5"),
    ],
)
def test_options_that_do_not_fit(options, message):
    with pytest.raises(ValueError, match=message):
        load("digits", **options)


class Rows:
    """A random-access reader as timm's for Hugging Face's data sets is: row 3 is broken."""

    class_to_idx = None
    label_key = "label"

    def __init__(self):
        self.dataset = {"label": [0, 1] * 10}

    def __getitem__(self, row):
        file = io.BytesIO()
        Image.new("L", (10, 12), row).save(file, "PNG")
        return io.BytesIO(file.getvalue()[: 40 if row == 3 else None]), row % 2

    def __len__(self):
        return 20


def test_a_broken_row_is_named_and_not_replaced(monkeypatch):
    monkeypatch.setattr(timm_sets, "create_dataset", lambda *_, **__: ImageDataset(None, reader=Rows()))
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object())
    splits = load("hfds/shapes", num_classes=2, input_img_mode="L")
    assert [len(split) for split in splits] == [18, 2, 20]
    assert [int(splits.test[row][0][0, 0, 0]) for row in (0, 5, 19)] == [0, 5, 19]
    assert splits.test.labels.tolist() == [0, 1] * 10
    with pytest.raises(OSError, match=r"hfds/shapes, test, image 3: got .*, accepted: an image that can"):
        splits.test[3]


class Shards:
    """A reader as timm's are: shards that workers share; in training in an order that its seed gives."""

    tells_classes = True

    def __init__(self, is_training=False, seed=42, batch_size=1, shards=4, each=5):
        self.class_to_idx = {"even": 0, "odd": 1} if self.tells_classes else {}
        self.is_training = is_training
        self.seed = seed
        self.shards = shards
        self.each = each
        self.num_samples = shards * each
        self.dist_rank, self.dist_num_replicas = 7, 8  # as torch.distributed would have it

    def __iter__(self):
        worker = torch.utils.data.get_worker_info()
        number, workers = (0, 1) if worker is None else (worker.id, worker.num_workers)
        number, workers = self.dist_rank * workers + number, self.dist_num_replicas * workers
        order = torch.arange(self.shards)
        if self.is_training:
            order = torch.randperm(self.shards, generator=torch.Generator().manual_seed(self.seed))
        for shard in order[number::workers].tolist():
            for i in range(shard * self.each, (shard + 1) * self.each):
                yield Image.new("RGB", (12 + i, 10), (i, 0, 0)), i % 2


def create(name="", split="", is_training=False, seed=42, batch_size=1, **_):
    reader = Shards(is_training, seed, batch_size, each={"train": 5, "val": 3, "test": 2, "": 5}[split])
    return IterableImageDataset(None, reader=reader)


def stream(view=None, **options):
    return ImageStream(create, 20, ["even", "odd"], view or View(resize=10, crop=8, hflip=0.5), **options)


def content(batches):
    """What each image was made of."""
    return [int(v) for images, _, _ in batches for v in images[:, 0, 0, 0]]


@pytest.mark.parametrize("workers", [0, 2])
def test_a_stream_is_evaluated_once(workers):
    loader = Loader(stream(padded=False), 3, workers=workers)
    batches = list(loader)
    assert sorted(content(batches)) == list(range(20))
    index = torch.cat([index for _, _, index in batches])
    assert sorted(index.tolist()) == list(range(20))
    for images, labels, _ in batches:
        assert images.shape[1:] == (3, 8, 8)
        assert images.dtype == torch.uint8
        assert torch.equal(labels, images[:, 0, 0, 0].long() % 2)


@pytest.mark.parametrize("told", [19, 21])
def test_a_stream_that_is_not_all_there_is_no_evaluation(told):
    """As where a shard is missing, which readers skip."""
    images = ImageStream(create, told, ["even", "odd"], View(resize=10, crop=8), padded=False)
    with pytest.raises(OSError, match=f"images: got 20 of a stream, accepted: {told}, its number of images"):
        list(Loader(images, 3, workers=0))


@pytest.mark.parametrize("workers", [0, 2])
def test_a_streams_epoch_is_a_function_of_seed_and_number(workers):
    loader = Loader(stream(padded=False), 3, train=True, seed=1, workers=workers)
    before = torch.get_rng_state()
    epoch = list(loader.epoch(2))
    assert len(epoch) == len(loader) == 6
    assert {type(batch) for batch in epoch} == {tuple}
    assert all(len(labels) == 3 for _, labels, _ in epoch)
    for a, b in zip(loader.epoch(2), epoch, strict=True):
        assert all(torch.equal(x, y) for x, y in zip(a, b, strict=True))
    for a, b in zip(loader.epoch(2, start=4), epoch[4:], strict=True):
        assert all(torch.equal(x, y) for x, y in zip(a, b, strict=True))
    assert content(loader.epoch(3)) != content(epoch)
    assert content(Loader(stream(padded=False), 3, train=True, seed=2, workers=workers).epoch(2)) != content(
        epoch
    )
    assert torch.equal(torch.get_rng_state(), before)
    indices = torch.cat([index for _, _, index in epoch]).tolist()
    assert len(set(indices)) == 18


def test_a_streams_training_epoch_is_full_whatever_its_shards():
    """A process whose shards hold less begins them again: with DDP, the others would wait for it."""
    short = ImageStream(create, 50, ["even", "odd"], View(resize=10, crop=8), padded=False)
    seen = content(Loader(short, 10, train=True, workers=0).epoch(0))
    assert len(seen) == 50
    assert {seen.count(i) for i in range(20)} == {2, 3}


def test_a_stream_is_a_plain_data_set():
    images, labels = zip(*stream(padded=False), strict=True)
    assert labels == tuple(i % 2 for i in range(20))
    assert [int(image[0, 0, 0]) for image in images] == list(range(20))
    assert len(stream(padded=False)) == 20


def test_streams_through_timms_factory(monkeypatch):
    monkeypatch.setattr(timm_sets, "create_dataset", create)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object())
    options = {"input_size": 8, "crop_pct": 0.8}
    splits = load("wds/shapes", "/somewhere", val_split="val", **options)
    assert [len(split) for split in splits] == [20, 12, 8]
    assert splits.classes == ("even", "odd")
    assert sorted(content(Loader(splits.val, 4, workers=0))) == list(range(12))
    for name, padded in (("wds", True), ("tfds", True), ("hfids", False)):
        assert load(f"{name}/shapes", "/somewhere", val_split="val", **options).test.padded == padded
    with pytest.raises(
        ValueError, match="val_split: got None, accepted: the name of one: wds/shapes is streamed"
    ):
        load("wds/shapes", "/somewhere", **options)
    monkeypatch.setattr(Shards, "tells_classes", False)
    with pytest.raises(ValueError, match="num_classes: got None, accepted: the number of classes"):
        load("wds/shapes", "/somewhere", val_split="val", **options)
    assert load("wds/shapes", "/x", val_split="val", num_classes=2, **options).classes == ("0", "1")


def launch(monkeypatch, rank):
    """As one of two processes."""
    monkeypatch.setattr("roli_fast.distributed.rank", lambda: rank)
    monkeypatch.setattr("roli_fast.distributed.world_size", lambda: 2)


def test_processes_share_a_stream_or_each_read_all_of_it(monkeypatch):
    shares = [content(Loader(stream(padded=False), 3, workers=0, rank=r, world_size=2)) for r in (0, 1)]
    assert sorted(shares[0] + shares[1]) == list(range(20))
    launch(monkeypatch, 1)
    assert content(Loader(stream(padded=False), 3, workers=0)) == shares[1]
    every = Loader(stream(padded=True), 3, workers=0, rank=0, world_size=1)
    assert sorted(content(every)) == list(range(20))


def test_a_stream_that_processes_would_pad_is_not_evaluated_in_shares(monkeypatch):
    launch(monkeypatch, 0)
    with pytest.raises(ValueError, match="images: got a stream that 2 processes would pad"):
        Loader(stream(padded=True), 3)
    Loader(stream(padded=False), 3)
    Loader(stream(padded=True), 3, train=True)


def of_pictures(pictures, mode="RGB", view=None):
    """A stream of one shard."""

    class Reader(Shards):
        def __init__(self, **_):
            super().__init__(shards=1, each=len(pictures))

        def __iter__(self):
            worker = torch.utils.data.get_worker_info()
            if (0 if worker is None else worker.id) + self.dist_rank == 0:
                yield from ((picture, 0) for picture in pictures)

    def make(**_):
        return IterableImageDataset(None, reader=Reader())

    return ImageStream(make, len(pictures), ["all"], view or View(), padded=False, mode=mode)


@pytest.mark.filterwarnings("ignore:This DataLoader will create")
@pytest.mark.parametrize("workers", [1, 3])
def test_workers_without_a_shard_have_nothing_to_do(workers):
    images = of_pictures([Image.new("RGB", (8, 8), (i, 0, 0)) for i in range(20)])
    trained = Loader(images, 3, train=True, workers=workers).epoch(0)
    assert content(trained) == list(range(18))
    assert content(Loader(images, 3, workers=workers)) == list(range(20))


def test_a_process_without_a_shard_says_so():
    images = of_pictures([Image.new("RGB", (8, 8))] * 20)
    with pytest.raises(OSError, match=r"got none .* in one of the processes, accepted: as many shards as"):
        next(Loader(images, 3, train=True, workers=0, rank=1, world_size=2).epoch(0))


@pytest.mark.parametrize(("mode", "channels"), [("L", 1), ("RGB", 3)])
def test_grey_values_of_16_bits_are_scaled(mode, channels):
    values = [0, 1000, 30000, 65535]
    pictures = [Image.fromarray(numpy.full((4, 4), value, numpy.uint16)) for value in values]
    ((images, _, _),) = Loader(of_pictures(pictures, mode), 4, workers=0)
    expected = [round(value * 255 / 65535) for value in values]
    assert images[:, :, 0, 0].tolist() == [[value] * channels for value in expected]
    plain = [int(image[0, 0, 0]) for image, _ in of_pictures(pictures, mode)]
    assert plain == expected


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize("train", [False, True])
def test_pictures_of_several_sizes_are_refused_in_a_stream(workers, train):
    images = of_pictures([Image.new("RGB", size) for size in [(8, 8), (8, 8), (12, 8)]])
    said = r"^input_size: got None, but pictures of a stream have 8x8 and 12x8 pixels, accepted: pixels a"
    with pytest.raises(ValueError, match=said):
        list(Loader(images, 3, train=train, workers=workers).epoch(0))


@pytest.mark.parametrize("workers", [0, 1])
def test_a_picture_of_a_stream_that_cannot_be_read(workers):
    file = io.BytesIO()
    noise = numpy.random.default_rng(0).integers(0, 256, (40, 40, 3), numpy.uint8)
    Image.fromarray(noise).save(file, "PNG")
    cut = Image.open(io.BytesIO(file.getvalue()[:500]))
    images = of_pictures([Image.new("RGB", (40, 40)), cut])
    with pytest.raises(OSError, match=r"^images: got .*, of a stream, accepted: one that can be read"):
        list(Loader(images, 1, workers=workers))


@pytest.mark.parametrize(
    ("named", "message"),
    [
        ({"train_split": "Train"}, "train_split: got Train, which is the test images of torch/cifar10"),
        ({"val_split": "val"}, "got val and test, which are the same images of torch/cifar10"),
        ({"test_split": "testing", "val_split": "test"}, "got test and testing, which are the same images"),
    ],
)
def test_names_that_mean_the_same_images(named, message, tmp_path, monkeypatch):
    """timm takes every name that it does not know for that of the test images."""
    cifar(tmp_path, CIFAR10, monkeypatch, 20, 10)
    with pytest.raises(ValueError, match=message):
        load("torch/cifar10", tmp_path, **named)


def test_a_split_that_has_no_folder(tmp_path):
    """timm then takes the whole."""
    folders(tmp_path, {"cat": 20, "dog": 20})
    with pytest.raises(FileNotFoundError, match="without a folder for train, accepted: one for each split"):
        load("torch/image_folder", tmp_path)


def test_imagenets_root_is_all_of_its_parts(tmp_path):
    """torchvision's ImageNet says so of each, and is an ImageFolder."""

    class ImageNet(ImageFolder):
        def __init__(self, split):
            super().__init__(tmp_path / split)
            self.root, self.split = str(tmp_path), split

    for split in ("train", "val"):
        folders(tmp_path / split, {"cat": 1})
    parts = {split: ImageNet(split) for split in ("train", "val")}
    timm_sets.check_parts(parts, "train", "torch/imagenet", str(tmp_path))
    parts["validation"] = ImageNet("val")
    with pytest.raises(
        ValueError, match="got val and validation, which are the same images of torch/imagenet"
    ):
        timm_sets.check_parts(parts, "train", "torch/imagenet", str(tmp_path))


def test_classes_of_one_name_keep_apart():
    names = [("crane", "bird"), "dog", "crane, bird"]
    assert timm_sets.class_names(names) == ["crane, bird (0)", "dog", "crane, bird (2)"]
    with pytest.raises(ValueError, match="classes: got dog twice, accepted: names that differ"):
        StoredImages(torch.zeros(2, 3, 4, 4), torch.tensor([0, 1]), ["dog", "dog"])
