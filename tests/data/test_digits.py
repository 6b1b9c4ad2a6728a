import torch

from roli_fast.data import digits


def test_splits_are_real_disjoint_and_balanced():
    splits = digits()
    images = [s.tensors[0] for s in splits]
    assert [len(x) for x in images] == [1077, 360, 360]
    assert all(x.shape[1:] == (1, 8, 8) and x.min() == 0 and x.max() == 1 for x in images)
    for s in splits:
        counts = torch.bincount(s.tensors[1], minlength=10)
        assert counts.min() > 0.08 * len(s)
    # scikit-learn's set has 1,797 images that are all different: no image is in two splits.
    assert len(torch.cat(images).flatten(1).unique(dim=0)) == 1797
    again = digits()
    assert all(torch.equal(a.tensors[0], b.tensors[0]) for a, b in zip(splits, again, strict=True))
    assert not torch.equal(digits(seed=1).test.tensors[0], splits.test.tensors[0])
