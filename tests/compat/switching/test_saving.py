"""Rows of docs/switching.md: what is saved while an attack runs."""

import pytest
import torch

import roli_fast.compat.torchattacks as torchattacks
from roli_fast.compat.autoattack import AutoAttack

from ..cases import original
from .faces import row


@row("State")
def test_state(digits_subject, tmp_path):
    s = digits_subject.first(6)
    kind = {"version": "custom", "attacks_to_run": ["apgd-ce"], "seed": 0, "verbose": False}
    evaluate = AutoAttack(s.model, eps=0.5, device="cpu", **kind).run_standard_evaluation
    evaluate(s.images, s.labels, bs=3, state_path=tmp_path / "state")
    again = evaluate(s.images, s.labels, bs=3, state_path=tmp_path / "state")
    assert torch.equal(again, s.images)  # all were done


def saved_in_batches(library, model, path, images, monkeypatch):
    """How often the file is written, where the loader fails after six batches of eight."""

    def loader():
        for number, image in enumerate(images.split(1)):
            if number == 6:
                raise KeyboardInterrupt
            yield image, torch.zeros(1, dtype=torch.int64)

    class Loader(list):
        def __iter__(self):
            return loader()

    writes, save = [], torch.save
    monkeypatch.setattr(torch, "save", lambda *a, **o: writes.append(1) or save(*a, **o))
    with pytest.raises(KeyboardInterrupt):
        library.FGSM(model).save(Loader(range(8)), path, verbose=True)
    assert len(torch.load(path)["adv_inputs"]) == 6
    return len(writes)


@row("Saving")
def test_saving(net, tmp_path, monkeypatch):
    images = torch.rand(8, 1, 8, 8)
    assert saved_in_batches(torchattacks, net, tmp_path / "images.pt", images, monkeypatch) == 4  # 1, 2, 4, 6
    assert [path.name for path in tmp_path.iterdir()] == ["images.pt"]


def test_saving_in_the_original(net, tmp_path, monkeypatch):
    images = torch.rand(8, 1, 8, 8)
    path = tmp_path / "images.pt"
    assert saved_in_batches(original("torchattacks"), net.eval(), path, images, monkeypatch) == 6
