"""A proxy task in a LightningModule of your own, and its encoder fine-tuned with few masks.

    python examples/with_lightning.py [SCANS] [OUT]

SCANS is a folder of scans with masks (the sample brains if not given), OUT is where everything goes
(runs/with_lightning). The network is MONAI's BasicUNet, of which only the way down is trained.
"""

import sys
from pathlib import Path

import lightning as L
import torch
from monai.networks.nets import BasicUNet
from torch.utils.data import DataLoader

import ssl3d
from ssl3d.demo_cohort import find_samples

scans = sys.argv[1] if len(sys.argv) > 1 else find_samples()
out = Path(sys.argv[2] if len(sys.argv) > 2 else "runs/with_lightning")
L.seed_everything(0)


class Turned(L.LightningModule):
    """By which of ten turns was a brain rotated?"""

    def __init__(self, encoder):
        super().__init__()
        self.task = ssl3d.tasks.Rotation(encoder)  # the encoder, and a head on top

    def training_step(self, images, batch_idx):
        inputs, targets = self.task.make(images)  # chance is PyTorch's own; a generator may be given
        outputs = self.task(inputs)
        loss = self.task.loss(outputs, targets)
        self.log_dict({"loss": loss, **self.task.scores(outputs, targets)}, on_step=False, on_epoch=True)
        return loss

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), lr=1e-3)


# Prepared once: arrays of one size with values from 0 to 1. `finetune` tests on people who are not in "train".
store = ssl3d.prepare(scans, out / "store", size=24, progress=False)
images = torch.stack([torch.tensor(store.image(case)).float() for case in store.split("train")]) / store.unit
loader = DataLoader(images, batch_size=8, shuffle=True)

# norm="batch": after BasicUNet's own norms over an instance, the mean of each map, which the head reads, says little.
unet = BasicUNet(in_channels=store.channels, features=(8, 16, 32, 64, 64, 8), norm="batch")
encoder = ssl3d.as_encoder(unet, images[:1], layers=["conv_0", "down_1", "down_2", "down_3"])  # fine to coarse

trainer = L.Trainer(max_epochs=20, logger=False, enable_checkpointing=False, enable_progress_bar=False)
trainer.fit(Turned(encoder), loader)
print("rotation,", ", ".join(f"{name} {value:.3f}" for name, value in trainer.callback_metrics.items()))

run = ssl3d.finetune(store, out / "masks", encoder=encoder, labels=0.5, steps=60, lr=5e-3, progress=False)
print(run.summary())
print("scores of the classes of a brain:", tuple(run.network(images[:1]).shape))
