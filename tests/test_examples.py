"""The example scripts, run small."""

import pytest
import torch

from examples import ensemble, gradient_penalty, onnx_runtime


def test_gradient_penalty_brings_slopes_to_one(monkeypatch):
    monkeypatch.setattr(gradient_penalty, "LENGTH", 12)
    distance, slope = gradient_penalty.train(120, batch=8, report=60)
    assert distance > 0
    assert slope == pytest.approx(1, abs=0.3)


def test_slopes_are_those_of_finite_differences():
    critic = gradient_penalty.Critic(4).double()
    x = gradient_penalty.waves(3).double()
    slopes = gradient_penalty.slopes(critic, x)
    for k, v in enumerate(x):
        jacobian = torch.stack([
            (critic((v + e)[None]) - critic((v - e)[None])).squeeze() / 2e-6
            for e in 1e-6 * torch.eye(v.numel()).double().view(-1, *v.shape)
        ])
        assert slopes[k].item() == pytest.approx(jacobian.norm().item(), rel=1e-6)


def test_an_ensemble_is_better_than_its_members():
    together, single = ensemble.train(members=4, steps=40, batch=16)
    assert together < single < 0.4


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
def test_onnx_runtime_gives_the_models_values(tmp_path):
    model = onnx_runtime.Tagger()
    onnx_runtime.export(model, tmp_path / "model.onnx")
    assert onnx_runtime.compare(model, tmp_path / "model.onnx") < 1e-6
