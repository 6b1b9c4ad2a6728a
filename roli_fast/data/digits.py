"""The default data set: scikit-learn's handwritten digits, real 8x8 images that need no download.

Alpaydin and Kaynak, Optical Recognition of Handwritten Digits, UCI Machine Learning Repository, 1998.
"""

from fractions import Fraction

import torch

from .images import StoredImages
from .splits import Splits, cut_share
from .view import View


def digits(seed: int = 0) -> Splits:
    """1,797 greyscale digits of 8x8 pixels: 1,077 for training, 360 for validation and 360 for testing, with
    the classes in proportion.

    Images are float32 in [0, 1]: they have 17 levels of grey, which bytes cannot hold exactly.

    seed: chooses which images are in which split.

    Needs scikit-learn (``pip install roli-fast[demo]``).
    """
    from sklearn.datasets import load_digits

    pixels, labels = load_digits(return_X_y=True)
    images = torch.tensor(pixels, dtype=torch.float32).reshape(-1, 1, 8, 8) / 16
    keys = [str(row) for row in range(len(labels))]
    whole = StoredImages(images, torch.tensor(labels), [str(c) for c in range(10)], keys, View())
    rest, test = cut_share(whole, Fraction(360, 1_797), seed)
    train, val = cut_share(rest, Fraction(360, 1_437), seed)
    return Splits(train, val, test)
