"""The commands where the default device is a GPU: what a user there meets first."""

import json

import pytest

from roli_fast.cli.main import main

pytestmark = pytest.mark.gpu


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A probed and finetuned model of the digits."""
    folder = tmp_path_factory.mktemp("runs")
    settings = ["--model", "small_resnet", "--epochs", "2"]
    assert main(["train", *settings, "--attack", "none", "--output", str(folder / "pretrained")]) == 0
    start = ["--initial-checkpoint", str(folder / "pretrained" / "finetune" / "best.safetensors")]
    start += ["--eps", "0.1", "--steps", "2", "--val-steps", "2"]
    both = ["train", *settings, *start, "--output", str(folder / "finetuned")]
    assert main(both) == 0
    assert main([*both, "--resume"]) == 0
    return folder / "finetuned"


@pytest.mark.parametrize("device", [[], ["--device", "cuda"], ["--device", "cuda:0"]])
def test_evaluation(trained, device, tmp_path):
    command = ["eval", str(trained / "finetune" / "best.safetensors"), "--dataset", "digits", "--eps", "0.1"]
    assert main([*command, "--output", str(tmp_path / "eval"), *device]) == 0


def test_transfer(trained, tmp_path):
    model = str(trained / "finetune" / "best.safetensors")
    assert (
        main(
            ["transfer", model, "--dataset", "digits", "--eps", "0.1", "--output", str(tmp_path / "transfer")]
        )
        == 0
    )


def test_report(trained, tmp_path):
    assert main(["report", str(trained), "--output", str(tmp_path / "report")]) == 0


def test_bench(tmp_path):
    assert main(["bench", "--quick", "--output", str(tmp_path)]) == 0
    assert json.loads((tmp_path / "bench.json").read_text())


def test_doctor(capsys):
    assert main(["doctor"]) == 0
    assert "cuda" in capsys.readouterr().out
