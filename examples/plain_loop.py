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
    """Half the side, `after` maps."""
    return nn.Sequential(nn.Conv3d(before, after, 3, stride=2, padding=1), nn.GroupNorm(8, after), nn.ReLU())


def network(channels: int) -> nn.Sequential:
    """Any module will do whose output is a map (B, K, x, y, z), or a list of such maps."""
    return nn.Sequential(block(channels, 16), block(16, 32), block(32, 64), block(64, 128))


# Scans of any layout as arrays of one size with values from 0 to 1, split by person; a tensor of each part.
store = ssl3d.prepare(scans, out / "store", size=32, progress=False)
train, test = (torch.stack([torch.tensor(store.image(case)).float() for case in store.split(part)]) / store.unit
               for part in ("train", "test"))  # (B, C, 32, 32, 32)
loader = DataLoader(train, batch_size=8, shuffle=True, generator=torch.Generator().manual_seed(0))

mine = network(store.channels)
task = ssl3d.tasks.Rotation(ssl3d.as_encoder(mine, example=train[:1]))  # as_encoder asks `mine` for its maps
optimiser = torch.optim.Adam(task.parameters(), lr=1e-3)  # of the network, and of the task's own head
generator = torch.Generator().manual_seed(0)  # of the turns

for epoch in range(1, 41):
    for images in loader:
        inputs, targets = task.make(images, generator)  # turned brains, and by which of ten turns
        loss = task.loss(task(inputs), targets)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    if epoch % 10 == 0:
        with torch.no_grad():  # the test brains, five times each
            inputs, targets = task.make(test.repeat_interleave(5, dim=0), torch.Generator().manual_seed(1))
            seen = task.scores(task(inputs), targets)
        print(f"epoch {epoch}: loss {loss.item():.3f}, accuracy on new brains {seen['accuracy']:.3f}, "
              f"by chance {seen['chance']:.3f}")

torch.save(mine.state_dict(), out / "mine.pt")  # the weights are your network's own: names as you gave them
again = network(store.channels)
again.load_state_dict(torch.load(out / "mine.pt", weights_only=True))
assert torch.equal(again(test), mine(test))
print(f"{out / 'mine.pt'}: {len(mine.state_dict())} weights, a fresh network with them gives the same maps")
