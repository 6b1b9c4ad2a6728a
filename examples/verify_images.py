"""Checks the adversarial images that somebody else has made: what they say they are, and what they do.

The file is what ``torch.save({"images": ..., "labels": ..., "adversarial": ...}, path)`` writes.
"""

import argparse

import torch

from roli_fast.attacks import verify


def check(model, path, norm="linf", eps=8 / 255):
    """model: maps pixels to logits."""
    stored = torch.load(path, map_location="cpu", weights_only=True)
    checked = verify(model, stored["images"], stored["adversarial"], stored["labels"], norm, eps)
    for what, passed in {
        "without NaN and infinity": checked.finite,
        "within [0, 1]": checked.in_box,
        f"within {eps:.4g} in {norm}": checked.in_ball,
        "fool the model, and all of that": checked.success,
    }.items():
        print(f"{passed.sum()} of {len(passed)} {what}")
    print(f"largest distance: {checked.distance.max():.6g}")
    return checked


def main(arguments=None):
    from roli_fast.models import small_resnet

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("images", help="the file with images, labels and adversarial images")
    parser.add_argument("weights", help="a state_dict of the model, here a small_resnet(10, in_chans=1)")
    parser.add_argument("--norm", default="linf", choices=["linf", "l2", "l1"])
    parser.add_argument("--eps", type=float, default=8 / 255)
    given = parser.parse_args(arguments)
    model = small_resnet(10, in_chans=1)
    model.load_state_dict(torch.load(given.weights, map_location="cpu", weights_only=True))
    return check(model, given.images, given.norm, given.eps)


if __name__ == "__main__":
    main()
