"""Adversarial training in a loop of your own: the attack's gradient is yours, its step is one fused op."""

import torch
import torch.nn.functional as F
from torch.utils.data import DataLoader

from roli_fast import ops
from roli_fast.data import digits
from roli_fast.models import small_resnet

EPS, STEP_SIZE, STEPS = 0.15, 0.05, 4


def attacked(model, images, labels, seed):
    """PGD from a random start; seed: (2,) int64."""
    adv = ops.linf_start(images, EPS, seed)
    for _ in range(STEPS):
        adv.requires_grad_()
        loss = F.cross_entropy(model(adv), labels, reduction="sum")
        (grad,) = torch.autograd.grad(loss, adv)
        adv = adv.detach()
        ops.linf_step_(adv, grad, images, STEP_SIZE, EPS)
    return adv


def main(epochs=10, batch_size=64):
    splits = digits()
    model = small_resnet(10, in_chans=1)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for epoch in range(epochs):
        for images, labels in DataLoader(splits.train, batch_size, shuffle=True):
            model.eval()
            adv = attacked(model, images, labels, torch.randint(2**62, (2,)))
            model.train()
            loss = F.cross_entropy(model(adv), labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        print(f"epoch {epoch}: loss {loss.item():.3f}")
    return model


if __name__ == "__main__":
    main()
