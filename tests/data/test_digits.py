import torch

from roli_fast.data import digits


def test_splits_are_real_disjoint_and_balanced():
    splits = digits()
    images = [s.images for s in splits]
    assert [len(x) for x in images] == [1077, 360, 360]
    assert all(x.shape[1:] == (1, 8, 8) and x.min() == 0 and x.max() == 1 for x in images)
    for s in splits:
        counts = torch.bincount(s.labels, minlength=10)
        assert counts.min() > 0.08 * len(s)
    # scikit-learn's set has 1,797 images that are all different: no image is in two splits.
    assert len(torch.cat(images).flatten(1).unique(dim=0)) == 1797
    again = digits()
    assert all(torch.equal(a.images, b.images) for a, b in zip(splits, again, strict=True))
    assert not torch.equal(digits(seed=1).test.images, splits.test.images)


def test_they_are_scikit_learns():
    from sklearn.datasets import load_digits

    pixels, labels = load_digits(return_X_y=True)
    for split in digits():
        rows = [int(key) for key in split.keys]
        assert torch.equal(split.images.flatten(1) * 16, torch.tensor(pixels[rows], dtype=torch.float32))
        assert torch.equal(split.labels, torch.tensor(labels[rows]))
