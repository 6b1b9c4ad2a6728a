"""A black-box attack by transfer: images that were made against a surrogate, judged by the target."""

from roli_fast.attacks import MIFGSM, verify
from roli_fast.data import digits
from roli_fast.models import small_resnet
from roli_fast.training import Recipe, train

EPS = 0.2


def main(epochs=5, batch_size=64):
    splits = digits()
    recipe = Recipe(epochs=epochs, lr=3e-3, batch_size=batch_size, attack="none", precision="fp32")
    surrogate, target = small_resnet(10, in_chans=1), small_resnet(10, in_chans=1, channels=(16, 32, 64, 64))
    for model in (surrogate, target):
        train(model, splits, recipe)
    images, labels = splits.test.images, splits.test.labels
    adv = MIFGSM(eps=EPS, step_size=EPS / 8, steps=10)(surrogate, images, labels)
    found = {
        name: verify(model, images, adv, labels, "linf", EPS)
        for name, model in {"surrogate": surrogate, "target": target}.items()
    }
    for name, checked in found.items():
        print(f"{name}: fooled by {checked.success.double().mean():.1%}")
    return found


if __name__ == "__main__":
    main()
