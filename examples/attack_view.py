"""A training step of your own around a fast gradient: a frozen copy of the model, with BatchNorm folded, on a
GPU in bfloat16 and channels-last, that follows the weights."""

import torch
import torch.nn.functional as F
from torch.utils.data import DataLoader

from roli_fast import ops
from roli_fast.data import digits
from roli_fast.engine import AttackView, InputGradient
from roli_fast.models import small_resnet

EPS, STEP_SIZE, STEPS = 0.15, 0.05, 4


def loss_per_sample(logits, labels):
    return F.cross_entropy(logits, labels, reduction="none")


def main(epochs=10, batch_size=64, precision=None):
    """precision: default "bf16" on a GPU, and "fp32" elsewhere, where not every processor is fast in it."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    precision = precision or ("bf16" if device == "cuda" else "fp32")
    splits = digits()
    model = small_resnet(10, in_chans=1).to(device)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    view = AttackView(model, precision=precision)
    gradient = InputGradient(view, loss_per_sample, precision=precision)
    for epoch in range(epochs):
        for images, labels in DataLoader(splits.train, batch_size, shuffle=True):
            images, labels = images.to(device), labels.to(device)
            view.refresh()
            adv = ops.linf_start(images, EPS, torch.randint(2**62, (2,), device=device))
            x = view.prepare(adv)  # what the view eats: normalised, cast, laid out
            for _ in range(STEPS):
                grad, _, _ = gradient(x, labels)
                ops.linf_step_(
                    adv, grad, images, STEP_SIZE, EPS, out=x
                )  # and the next input, in the same pass
            model.train()
            loss = F.cross_entropy(model(adv), labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        print(f"epoch {epoch}: loss {loss.item():.3f}")
    print(f"folded: {', '.join(view.report.folded) or 'nothing'}")
    return model.cpu()


if __name__ == "__main__":
    main()
