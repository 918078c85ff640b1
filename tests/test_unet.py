"""The U-Net: MONAI's numbers, weights from a seed, strict loading."""

import pytest
import torch
from conftest import SMALL
from monai.networks.nets import DynUNet

from ssl3d.errors import InputError
from ssl3d.networks.encoders import make_encoder
from ssl3d.networks.exchange import dynunet_names
from ssl3d.networks.unet import Segmenter
from ssl3d.networks.weights import load_encoder, load_weights, save_encoder

pytestmark = pytest.mark.quick


@pytest.mark.parametrize("dims", [2, 3])
@pytest.mark.parametrize("widths", [(8, 16, 32, 64, 128), (4, 6, 10), (32, 64, 128, 256, 512)])
def test_our_network_is_dynunet(dims, widths):
    n = len(widths)
    ours = Segmenter(make_encoder("unet", dims, 2, widths, seed=0), n_classes=3).eval()
    groups = next(g for g in (8, 4, 2, 1) if all(w % g == 0 for w in widths) and widths[-1] >= 2 * g)
    theirs = DynUNet(
        dims,
        2,
        3,
        [3] * n,
        [1] + [2] * (n - 1),
        [2] * (n - 1),
        filters=widths,
        res_block=True,
        norm_name=("group", {"num_groups": groups, "affine": True}),
    ).eval()
    moved = {name: ours.state_dict()[k] for k, name in dynunet_names(ours).items()}
    assert set(moved) == {k for k in theirs.state_dict() if not k.startswith("skip_layers")}
    theirs.load_state_dict(moved, strict=False)
    x = torch.rand(1, 2, *[16 if n == 5 else 8] * dims)
    with torch.no_grad():
        assert torch.allclose(ours(x), theirs(x), rtol=1e-4, atol=1e-5)  # sums in another order


def test_paper_sized_encoder_on_the_smallest_map():
    encoder = make_encoder("unet", 3, 1, (32, 64, 128, 256, 512), seed=0)
    maps = encoder(torch.rand(1, 1, 16, 16, 16))
    assert [m.shape[1:] for m in maps] == [(w, *[16 // 2**i] * 3) for i, w in enumerate(encoder.channels)]
    assert torch.isfinite(maps[-1]).all()
    assert not [m for m in encoder.modules() if "BatchNorm" in type(m).__name__]


def test_weights_come_from_the_seed_alone():
    state = torch.random.get_rng_state()
    a, b, c = (make_encoder("unet", 3, 1, SMALL, seed=s) for s in (0, 0, 1))
    assert torch.equal(state, torch.random.get_rng_state()), "the global generator did not move"
    assert all(torch.equal(x, y) for x, y in zip(a.parameters(), b.parameters()))
    assert not torch.equal(next(a.parameters()), next(c.parameters()))


def test_strict_loading(tmp_path):
    encoder = make_encoder("unet", 3, 2, SMALL, seed=1)
    save_encoder(encoder, tmp_path, {"task": "x", "trained_on": []})
    loaded = load_encoder(tmp_path)
    assert all(torch.equal(a, b) for a, b in zip(encoder.state_dict().values(), loaded.state_dict().values()))
    for other, said in (
        (make_encoder("unet", 3, 1, SMALL, 0), "another shape"),
        (make_encoder("unet", 2, 2, SMALL, 0), "another shape"),
        (make_encoder("unet", 3, 2, (*SMALL, 64), 0), "in the network only"),
        (make_encoder("unet", 3, 2, SMALL[:2], 0), "in the file only"),
    ):
        before = [p.clone() for p in other.parameters()]
        with pytest.raises(InputError, match=said):
            load_weights(other, tmp_path / "encoder.safetensors")
        assert all(torch.equal(a, b) for a, b in zip(before, other.parameters()))
    (tmp_path / "encoder.safetensors").write_bytes(b"\x01" * 50)
    with pytest.raises(InputError, match="encoder.safetensors"):
        load_encoder(tmp_path)
