"""Adversarial training with Hugging Face Accelerate: on one device or many, as ``accelerate launch`` says.

Needs ``pip install accelerate``.
"""

import torch
import torch.nn.functional as F
from accelerate import Accelerator
from torch.utils.data import DataLoader

from roli_fast.attacks import PGD
from roli_fast.data import digits
from roli_fast.models import small_resnet


def main(epochs=10, batch_size=64):
    accelerator = Accelerator()
    splits = digits()
    model = small_resnet(10, in_chans=1)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    loader = DataLoader(splits.train, batch_size, shuffle=True)
    model, optimizer, loader = accelerator.prepare(model, optimizer, loader)
    # The attack takes the wrappers of several devices off: no gradients are exchanged in its steps.
    attack = PGD(eps=0.15, step_size=0.05, steps=4)
    for epoch in range(epochs):
        model.train()
        for images, labels in loader:
            adv = attack(model, images, labels)
            loss = F.cross_entropy(model(adv), labels)
            optimizer.zero_grad()
            accelerator.backward(loss)
            optimizer.step()
        accelerator.print(f"epoch {epoch}: loss {loss.item():.3f}")
    return accelerator.unwrap_model(model)


if __name__ == "__main__":
    main()
