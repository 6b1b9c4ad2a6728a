"""AutoAttack of a timm model, with the normalisation inside the model, so that pixels are attacked."""

import timm
import torch

from roli_fast.attacks import AutoAttack
from roli_fast.evaluation import evaluate
from roli_fast.models import Normalized


def main(name="resnet18", pretrained=True, images=None, labels=None, eps=4 / 255, **settings):
    """images: (N, 3, H, W) in [0, 1]; default noise, labelled as the model sees it: bring your own.

    settings: of AutoAttack; without images of your own, 5 steps and 50 queries, to see it run.
    """
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model = timm.create_model(name, pretrained=pretrained).eval()
    about = timm.data.resolve_data_config({}, model=model)
    model = Normalized(model, about["mean"], about["std"]).to(device)
    if images is None:
        images = torch.rand(4, 3, 64, 64)
        settings = {"steps": 5, "queries": 50, **settings}
    images = images.to(device)
    if labels is None:
        with torch.no_grad():
            labels = model(images).argmax(1)
    labels = labels.to(device)
    batches = list(zip(images.split(64), labels.split(64), strict=True))
    found = evaluate(model, batches, AutoAttack(eps=eps, **settings), progress=True)
    for stage in found.stages:
        print(f"{stage:>8}: {found.after(stage).value:.1%}")
    low, high = found.interval()
    print(f"robust: {found.value:.1%} [{low:.1%}, {high:.1%}], {found.gradients} gradients")
    for note in found.notes:
        print(note)
    return found


if __name__ == "__main__":
    main()
