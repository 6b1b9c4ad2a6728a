"""Code that was written for torchattacks: the import is all that has changed."""

import torch
import torch.nn.functional as F
from torch.utils.data import DataLoader

import roli_fast.compat.torchattacks as torchattacks  # was: import torchattacks
from roli_fast.data import digits
from roli_fast.models import small_resnet


def main(epochs=10, batch_size=64):
    splits = digits()
    model = small_resnet(10, in_chans=1)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    atk = torchattacks.PGD(model, eps=0.15, alpha=0.05, steps=4)
    for epoch in range(epochs):
        model.train()
        for images, labels in DataLoader(splits.train, batch_size, shuffle=True):
            loss = F.cross_entropy(model(atk(images, labels)), labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        print(f"epoch {epoch}: loss {loss.item():.3f}")

    model.eval()
    atk.steps = 20
    images, labels = splits.test.images, splits.test.labels
    with torch.no_grad():
        right = model(atk(images, labels)).argmax(1) == labels
    print(f"robust accuracy: {right.double().mean():.1%}")
    return right


if __name__ == "__main__":
    main()
