"""What a face costs: PGD-10 through each of roli_fast.compat, beside the same attack called as ours.

``python -m benchmarks.faces --out FILE``. Weights are random: time alone is compared, interleaved. foolbox
judges what it has found, as its original does, and is compared with a call of ours that does; the others with
one that does not. ART's, which takes its own classifier and numpy's arrays, where ART is installed.
"""

import argparse
import importlib.util
import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy
import torch
from torch import Tensor, nn

from roli_fast.attacks import PGD
from roli_fast.compat import cleverhans, foolbox, torchattacks
from roli_fast.speed import machine
from roli_fast.speed.subjects import labelled, random_images, settle, timm_model
from roli_fast.speed.timing import interleaved, until_done

EPS, STEP, STEPS, ROUNDS = 8 / 255, 2 / 255, 10, 15
REFERENCES = {
    "torchattacks": "ours",
    "cleverhans": "ours",
    "art": "ours",
    "foolbox": "ours, judged",
    "ours, judged": "ours",
}
SHAPES = {"resnet18": (32, 3, 64, 64), "vit_tiny_patch16_224": (16, 3, 112, 112)}


def art_call(model: nn.Module, images: Tensor, labels: Tensor) -> Callable[[], Any]:
    from art.estimators.classification import PyTorchClassifier

    from roli_fast.compat import art

    loss, shape = nn.CrossEntropyLoss(), tuple(images.shape[1:])
    classifier = PyTorchClassifier(model, loss, shape, 10, clip_values=(0.0, 1.0))
    attack = art.ProjectedGradientDescent(
        classifier, eps=EPS, eps_step=STEP, max_iter=STEPS, num_random_init=1, verbose=False,
        batch_size=len(images),
    )  # fmt: skip
    return partial(attack.generate, images.numpy(), labels.numpy())


def measure(name: str) -> dict[str, Any]:
    torch.manual_seed(0)
    count, *shape = SHAPES[name]
    model = timm_model(name, shape)
    settle(model, [random_images(count, shape)])
    ((images, labels),) = labelled(model, [random_images(count, shape)])
    ours = PGD(eps=EPS, step_size=STEP, steps=STEPS, precision="torch")  # as the faces
    ta = torchattacks.PGD(model, eps=EPS, alpha=STEP, steps=STEPS)
    fb = foolbox.attacks.LinfPGD(abs_stepsize=STEP, steps=STEPS)
    fmodel = foolbox.PyTorchModel(model, bounds=(0, 1))
    calls: dict[str, Callable[[], Any]] = {
        "ours": partial(ours, model, images, labels),
        "ours, judged": partial(ours.run, model, images, labels),
        "torchattacks": partial(ta, images, labels),
        "foolbox": partial(fb, fmodel, images, labels, epsilons=EPS),
        "cleverhans": partial(
            cleverhans.projected_gradient_descent,
            model,
            images,
            EPS,
            STEP,
            STEPS,
            numpy.inf,
            clip_min=0.0,
            clip_max=1.0,
            y=labels,
            sanity_checks=False,
        ),
    }
    if importlib.util.find_spec("art"):
        calls["art"] = art_call(model, images, labels)
    measured = interleaved({who: [call] for who, call in calls.items()}, ROUNDS, 1, until_done)
    return {
        "shape": SHAPES[name],
        "ms": {who: 1e3 * measured.seconds_of(who)["median"] for who in calls},
        "ratio to ours": {who: measured.ratio(who, of) for who, of in REFERENCES.items() if who in calls},
        "other_cores": measured.other_cores,
    }


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    result = {"machine": machine.describe("cpu"), "commit": machine.commit()}
    result["models"] = {name: measure(name) for name in SHAPES}
    arguments.out.write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result["models"], indent=1))
