import numpy as np
import pytest
import torch
from torch import nn

from ssl3d.errors import InputError
from ssl3d.seeds import generator_for, seeded
from ssl3d.settings import Optimising
from ssl3d.training.loop import optimiser_of, rate_at, recipe_of, train
from ssl3d.training.runs import read_log

RECIPES = [
    {"optimiser": "adamw", "schedule": "polynomial", "lr_warmup": 3, "clip": 0.02},
    {"optimiser": "sgd", "schedule": "cosine", "weight_decay": 0.1},
    {"optimiser": "adam", "lr_warmup": 10, "weight_decay": 0.01},
]


def points(step):
    at = torch.rand(8, 4, generator=generator_for(0, "points", step)) * 2 - 1
    return at, at.prod(dim=1, keepdim=True)


def line(folder, n_steps=12, lr=0.05, read=points, **recipe):
    """The weights of a small network after a training."""
    with seeded(0, "line"):
        network = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 1))
    folder.mkdir(exist_ok=True)
    train(network, lambda network, batch, step: batch,
          lambda network, outputs, truth: {"loss": (outputs - truth).square().mean()}, read, folder, n_steps=n_steps,
          lr=lr, recipe=Optimising(**recipe), checkpoint_every=1, progress=False, accelerator="cpu")
    return torch.cat([p.detach().ravel() for p in network.parameters()])


@pytest.mark.parametrize("recipe", RECIPES)
def test_a_run_that_was_stopped_ends_with_the_same_weights(tmp_path, recipe):
    def stumble(step):
        if step == 7 and not (tmp_path / "stumbled").exists():
            (tmp_path / "stumbled").touch()
            raise RuntimeError("the disk is gone")
        return points(step)

    whole = line(tmp_path / "whole", **recipe)
    with pytest.raises(RuntimeError, match="the disk is gone"):
        line(tmp_path / "cut", read=stumble, **recipe)
    assert 0 < len(read_log(tmp_path / "cut")["step"]) < 12
    again = line(tmp_path / "cut", read=stumble, **recipe)
    assert torch.equal(whole, again), "rate, momentum and decay go on where they were"
    assert (tmp_path / "cut" / "log.csv").read_bytes() == (tmp_path / "whole" / "log.csv").read_bytes()


@pytest.mark.parametrize("recipe", RECIPES)
def test_training_is_the_same_as_pytorchs_plain_loop(tmp_path, recipe):
    with seeded(0, "line"):
        network = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 1))
    kind, name = Optimising(**recipe), recipe["optimiser"]
    decay = recipe_of(kind)["weight_decay"]
    optimiser = {
        "adam": lambda: torch.optim.Adam(network.parameters(), weight_decay=decay),
        "adamw": lambda: torch.optim.AdamW(network.parameters(), weight_decay=decay),
        "sgd": lambda: torch.optim.SGD(network.parameters(), lr=1, momentum=0.99, nesterov=True, weight_decay=decay),
    }[name]()
    for step in range(12):
        at, truth = points(step)
        optimiser.zero_grad()
        (network(at) - truth).square().mean().backward()
        if kind.clip:
            nn.utils.clip_grad_norm_(network.parameters(), kind.clip)
        optimiser.param_groups[0]["lr"] = 0.05 * rate_at(step, 12, kind)
        optimiser.step()
    plain = torch.cat([p.detach().ravel() for p in network.parameters()])
    torch.testing.assert_close(line(tmp_path / "run", **recipe), plain, rtol=1e-5, atol=1e-7)


def test_schedules_follow_their_formulas():
    rates = {name: np.array([rate_at(step, 1000, Optimising(schedule=name)) for step in range(1000)])
             for name in ("constant", "cosine", "polynomial")}
    assert (rates["constant"] == 1).all()
    assert rates["cosine"][[0, 500]].tolist() == pytest.approx([1, 0.5])
    assert rates["polynomial"][[0, 250, 999]].tolist() == pytest.approx([1, 0.75**0.9, 0.001**0.9])
    rising = [rate_at(step, 1000, Optimising(lr_warmup=4)) for step in range(6)]
    assert rising == [0.25, 0.5, 0.75, 1, 1, 1], "no step is made with a rate of zero"
    assert all((np.diff(rates[name]) < 0).all() and rates[name][-1] > 0 for name in ("cosine", "polynomial"))


def test_a_rise_that_never_ends_is_refused(tmp_path):
    with pytest.raises(InputError, match="lr_warmup, --lr-warmup.*12"):
        line(tmp_path / "run", lr_warmup=12)


def test_adams_decay_is_the_papers_none():
    assert recipe_of(Optimising())["weight_decay"] == 0
    weights = optimiser_of(Optimising(), nn.Linear(2, 2), lr=0.1).param_groups[0]
    assert (weights["weight_decay"], weights["lr"]) == (0, 0.1)
