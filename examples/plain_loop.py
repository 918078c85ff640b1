"""A network and a training loop of your own: it learns by which turn a brain was rotated, without a label.

    python examples/plain_loop.py [SCANS] [OUT]

SCANS is a folder of scans (the sample brains if not given), OUT is where everything goes (runs/plain_loop).
"""

import sys
from pathlib import Path

import torch
from torch import nn
from torch.utils.data import DataLoader

import ssl3d
from ssl3d.demo_cohort import find_samples

scans = sys.argv[1] if len(sys.argv) > 1 else find_samples()
out = Path(sys.argv[2] if len(sys.argv) > 2 else "runs/plain_loop")
torch.manual_seed(0)


def block(before: int, after: int) -> nn.Sequential:
    return nn.Sequential(nn.Conv3d(before, after, 3, stride=2, padding=1), nn.GroupNorm(8, after), nn.ReLU())


def network(channels: int) -> nn.Sequential:
    """Any module will do whose output is a map (B, K, x, y, z), or a list of maps from fine to coarse."""
    return nn.Sequential(block(channels, 16), block(16, 32), block(32, 64), block(64, 128))


store = ssl3d.prepare(scans, out / "store", size=32, progress=False)  # arrays with values in [0, 1], split by person
brains = {case: torch.tensor(store.image(case)).float() / store.unit for case in store.cases}  # (C, 32, 32, 32) each
train, test = (torch.stack([brains[case] for case in store.split(part)]) for part in ("train", "test"))

mine = network(store.channels)
task = ssl3d.tasks.Rotation(ssl3d.as_encoder(mine, example=train[:1]))  # your network, and a head on top
optimiser = torch.optim.Adam(task.parameters(), lr=1e-3)
for epoch in range(1, 41):
    task.train()
    for images in DataLoader(train, batch_size=8, shuffle=True):
        inputs, targets = task.make(images)  # brains that are turned, and the numbers of the turns
        loss = task.loss(task(inputs), targets)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    if epoch % 10 == 0:  # ask about brains that were not trained on, each five times, with a seed of their own
        task.eval()
        with torch.no_grad():
            inputs, targets = task.make(test.repeat(5, 1, 1, 1, 1), torch.Generator().manual_seed(1))
            scores = task.scores(task(inputs), targets)
        print(f"epoch {epoch}: loss {loss:.3f}, accuracy {scores['accuracy']:.3f}, chance {scores['chance']:.3f}")

ssl3d.keep_encoder(task.encoder, out / "run", store=store, task="rotation")  # as pretrain leaves it: can be exported
torch.save(mine.state_dict(), out / "mine.pt")  # the weights have the names that they have in your network
again = network(store.channels)
again.load_state_dict(torch.load(out / "mine.pt", weights_only=True))
assert torch.equal(again(test), mine(test))
print(f"{out / 'mine.pt'}: {len(mine.state_dict())} weights; a fresh network with them gives the same maps")
