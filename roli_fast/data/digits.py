"""The embedded default: scikit-learn's handwritten digits, real 8x8 images that need no download.

Alpaydin and Kaynak, Optical Recognition of Handwritten Digits, UCI Machine Learning Repository, 1998.
"""

from typing import NamedTuple

import torch
from torch.utils.data import TensorDataset


class Splits(NamedTuple):
    """Data sets of (images, labels): images (N, C, H, W) float32 in [0, 1], labels (N,) int64."""

    train: TensorDataset
    val: TensorDataset
    test: TensorDataset


def digits(seed: int = 0) -> Splits:
    """1,797 greyscale 8x8 digits, split 60 / 20 / 20 % with the classes in proportion.

    Needs scikit-learn (``pip install roli-fast[demo]``).
    """
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    images, labels = load_digits(return_X_y=True)
    images = images.reshape(-1, 1, 8, 8) / 16.0
    rest, test = train_test_split(range(len(labels)), test_size=0.2, stratify=labels, random_state=seed)
    train, val = train_test_split(rest, test_size=0.25, stratify=labels[rest], random_state=seed)

    def dataset(rows: list[int]) -> TensorDataset:
        return TensorDataset(
            torch.tensor(images[rows], dtype=torch.float32), torch.tensor(labels[rows], dtype=torch.int64)
        )

    return Splits(dataset(train), dataset(val), dataset(test))
