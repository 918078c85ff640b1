"""The facts that hold for every proxy task."""

import re

import numpy as np
import pytest
import torch
from conftest import SMALL

from ssl3d.errors import InputError
from ssl3d.networks.encoders import make_encoder
from ssl3d.seeds import seeded
from ssl3d.tasks import NAMES, TASKS
from ssl3d.tasks.base import Batch, evaluate, fit_plainly, hits

pytestmark = pytest.mark.quick

SIDE = 30  # large enough for every task with the small encoder


def batch(dims, n=3, channels=2, size=16, seed=0):
    image = torch.rand(n, channels, *[size] * dims, generator=torch.Generator().manual_seed(seed))
    return Batch(image, torch.arange(n))


def make_task(name, dims, **options):
    with seeded(0, "head"):
        return TASKS[name](make_encoder("unet", dims, 2, SMALL, seed=0), **options)


OPTIONS = {"jigsaw": {"n_permutations": 24}, "exemplar": {"code_size": 32}, "cpc": {"context_size": 32}}


def tensors(x):
    """The tensors in an example's inputs or a task's outputs, which may be one or several."""
    return [x] if isinstance(x, torch.Tensor) else [t for t in x if isinstance(t, torch.Tensor)]


@pytest.mark.parametrize("dims", [2, 3])
@pytest.mark.parametrize("name", NAMES)
class TestEveryTask:
    def new(self, name, dims, **more):
        return make_task(name, dims, **OPTIONS.get(name, {}), **more)

    def test_a_seed_gives_the_same_bytes(self, name, dims):
        task = self.new(name, dims)
        a, b, c = (task.make(batch(dims, size=SIDE), torch.Generator().manual_seed(s)) for s in (0, 0, 1))
        assert torch.equal(a.inputs, b.inputs) and torch.equal(a.targets, b.targets)
        assert not torch.equal(a.inputs, c.inputs) or not torch.equal(a.targets, c.targets)
        assert not a.inputs.requires_grad

    @pytest.mark.parametrize("channels_last", [False, True])
    def test_a_tensor_asks_what_a_batch_asks(self, name, dims, channels_last):
        task, images = self.new(name, dims, samples_per_image=2), batch(dims, size=SIDE)
        if channels_last:
            layout = torch.channels_last if dims == 2 else torch.channels_last_3d
            images = Batch(images.image.to(memory_format=layout), images.subject)
        said = {"subjects": [0, 1, 2]} if name == "exemplar" else {}
        a = task.make(images, torch.Generator().manual_seed(0))
        b = task.make(images.image, torch.Generator().manual_seed(0), **said)
        assert torch.equal(a.inputs, b.inputs) and torch.equal(a.targets, b.targets)
        asked = images.image.clone().requires_grad_()
        assert not task.make(asked, torch.Generator().manual_seed(0), **said).inputs.requires_grad
        assert evaluate(task, images, n_rounds=1) == evaluate(task, images.image, n_rounds=1, **said)

    def test_wrong_images_are_refused_before_the_first_question(self, name, dims):
        task, image = self.new(name, dims), batch(dims, size=SIDE).image
        task.ask = None  # it is not reached
        for wrong, said in (
            (image.numpy(), "type ndarray.*from_numpy"),
            ([image], "type list.*Batch"),
            ((image * 255).byte(), r"torch.uint8.*float\(\) / 255"),
            (image[0], r"wants \(images, channels, x, y.*images\[None\]"),
            (image[:, 0], r"images\[:, None\]"),
            (image[..., None], r"shape \(3, 2, 30, .*wants"),
            (image[:, :1], r"with 1 channel\(s\).*reads 2.*widen"),
            (image[:0], "none among them"),
            (Batch(image[0], torch.arange(3)), "wants"),
            (Batch(image, torch.arange(2)), r"shape \(2,\).*3 image"),
            (Batch(image, torch.rand(3)), r"whole numbers.*\[0, 0, 1, 1\]"),
            (Batch(image, torch.arange(3)[:, None]), r"shape \(3, 1\)"),
        ):
            with pytest.raises(InputError, match=said):
                task.make(wrong)
        for subjects in (["anna", "bert", "carl"], [True, False, True], [0.5, 1, 2], "abc", [[0], [1, 2]]):
            with pytest.raises(InputError, match="give whole numbers"):
                task.make(image, subjects=subjects)
        with pytest.raises(InputError, match="1 image|3 image"):
            task.make(image, subjects=3)
        with pytest.raises(InputError, match="a Batch says who"):
            task.make(Batch(image, torch.arange(3)), subjects=[0, 1, 2])
        for generator in (0, np.random.default_rng(0)):
            with pytest.raises(InputError, match="generator is .*torch.Generator"):
                task.make(Batch(image, torch.arange(3)), generator)

    def test_the_global_generator_is_left_alone(self, name, dims):
        task, images = self.new(name, dims), batch(dims, size=SIDE)
        state = torch.random.get_rng_state()
        inputs, targets = task.make(images, torch.Generator().manual_seed(0))
        outputs = task(inputs)
        task.loss(outputs, targets), task.scores(outputs, targets)
        assert torch.equal(state, torch.random.get_rng_state())

    def test_make_leaves_its_images_alone(self, name, dims):
        images = batch(dims, size=SIDE)
        before = images.image.clone()
        self.new(name, dims).make(images, torch.Generator().manual_seed(0)).inputs.zero_()
        assert torch.equal(images.image, before)

    def test_several_samples_of_each_image(self, name, dims):
        task, images = self.new(name, dims, samples_per_image=2), batch(dims, size=SIDE)
        images.image[1] = 0.25  # nothing of the other images may come from here
        inputs, _ = task.make(images, torch.Generator().manual_seed(0))
        even = inputs.flatten(1).std(dim=1) < 1e-6
        assert len(inputs) == 6 and (even.tolist() == [False] * 2 + [True] * 2 + [False] * 2 or name == "exemplar")

    def test_gradients_reach_encoder_and_head(self, name, dims):
        task = self.new(name, dims)
        inputs, targets = task.make(batch(dims, size=SIDE), torch.Generator().manual_seed(0))
        task.loss(task(inputs), targets).backward()
        silent = [n for n, p in task.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]
        assert not silent, silent

    def test_other_rows_do_not_change_an_answer(self, name, dims):
        task = self.new(name, dims).eval()
        inputs, _ = task.make(batch(dims, size=SIDE), torch.Generator().manual_seed(0))
        with torch.no_grad():
            before = [t[0].clone() for t in tensors(task(inputs))]
            inputs[1:] = inputs[1:].flip(-1) * 0.3
            assert all(torch.allclose(t[0], b, atol=1e-6) for t, b in zip(tensors(task(inputs)), before))

    def test_a_constant_image_gives_chance(self, name, dims):
        task = self.new(name, dims).eval()
        if name == "exemplar":  # what it does to brightness would tell
            task.rates.update(colour=0, rotate=0, zoom=0)
        n = 60 if name in ("exemplar", "cpc") else 120 * task.n_classes  # enough that an accuracy of 0 is not chance
        images = Batch(torch.full((n, 2, *[SIDE] * dims), 0.5), torch.arange(n))
        inputs, targets = task.make(images, torch.Generator().manual_seed(0))
        with torch.no_grad():
            few = inputs[:60] if name in ("exemplar", "cpc") else inputs[:1]  # all rows are alike
            outputs = task(few)
            outputs = outputs if len(few) == n else outputs.expand(n, *outputs.shape[1:])
            scores = task.scores(outputs, targets)
        chance = scores["chance"]
        if name in ("exemplar", "cpc"):
            assert scores["accuracy"] == pytest.approx(chance, abs=1e-6), "ties are even guesses"
        else:
            assert (inputs == inputs[:1]).all()
            assert abs(scores["accuracy"] - chance) < 4 * (chance * (1 - chance) / n) ** 0.5 < chance

    @pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
    def test_autocast(self, name, dims, dtype):
        task = self.new(name, dims)
        inputs, targets = task.make(batch(dims, size=SIDE), torch.Generator().manual_seed(0))
        with torch.autocast("cpu", dtype=dtype):
            outputs = task(inputs)
            loss = task.loss(outputs, targets)
            scores = task.scores(outputs, targets)
        assert loss.dtype == torch.float32 and torch.isfinite(loss) and np.isfinite(list(scores.values())).all()

    def test_the_papers_options(self, name, dims):
        task = make_task(name, dims, **TASKS[name].PAPER | OPTIONS.get(name, {}))
        inputs, targets = task.make(batch(dims, size=SIDE), torch.Generator().manual_seed(0))
        assert torch.isfinite(task.loss(task(inputs), targets))

    def test_patches_too_small_name_the_size_that_works(self, name, dims):
        task = self.new(name, dims)
        if name in ("rotation", "exemplar"):
            return  # they look at whole images
        for least in (8, 15, 20):
            task.encoder.min_side = least
            with pytest.raises(InputError) as e:
                task.make(batch(dims, size=10), torch.Generator().manual_seed(0))
            needed = int(re.search(r"at least (\d+) a side", str(e.value)).group(1))
            assert len(task.make(batch(dims, size=needed), torch.Generator().manual_seed(0)).inputs) == 3
            with pytest.raises(InputError):
                task.make(batch(dims, size=needed - 1), torch.Generator().manual_seed(0))

    def test_no_samples_are_refused(self, name, dims):
        with pytest.raises(InputError, match="samples_per_image"):
            self.new(name, dims, samples_per_image=0)

    def test_show(self, name, dims):
        import matplotlib

        matplotlib.use("Agg")
        task = self.new(name, dims)
        state = torch.random.get_rng_state()
        for channels in (1, 2, 3, 4):
            task.encoder.in_channels = channels
            image = batch(dims, channels=channels, size=SIDE).image.bfloat16()
            axes = task.show(Batch(image, torch.arange(3)))
            sides = [side for ax in axes for drawn in ax.images for side in drawn.get_array().shape[:2]]
            assert axes and min(sides) > channels, "not a channel as an axis of space"
            matplotlib.pyplot.close("all")
        assert torch.equal(state, torch.random.get_rng_state()), "a picture changes no later weights"


def test_who_is_seen_has_to_be_said_where_people_are_compared():
    images = batch(2, n=4, size=SIDE).image
    tasks = [make_task("exemplar", 2, code_size=8), make_task("cpc", 2, context_size=8, negatives="batch")]
    for task in tasks:
        for use in (task.make, task.show, lambda x, t=task: evaluate(t, x), lambda x, t=task: fit_plainly(t, x, 1)):
            with pytest.raises(InputError, match=r"compares people.*subjects=\[0, 0, 1, 1\], one whole"):
                use(images)
        for subjects in ([0, 0, 1, 1], np.array([0, 0, 1, 1]), torch.tensor([0, 0, 1, 1], dtype=torch.uint8)):
            wanted = task.make(Batch(images, torch.tensor([0, 0, 1, 1])), torch.Generator().manual_seed(0))
            found = task.make(images, torch.Generator().manual_seed(0), subjects=subjects)
            assert torch.equal(wanted.inputs, found.inputs) and torch.equal(wanted.targets, found.targets)
        assert evaluate(task, images, n_rounds=1, subjects=[0, 0, 1, 1]).accuracy >= 0
        assert np.isfinite(fit_plainly(task, images, 2, subjects=[0, 0, 1, 1])["loss"]).all()


def test_every_image_of_a_tensor_is_a_person():
    task, images = make_task("rotation", 2), batch(2, n=6).image
    assert task.as_batch(images).subject.tolist() == [0, 1, 2, 3, 4, 5]
    alone, together = evaluate(task, images), evaluate(task, images, subjects=[0] * 6)
    assert alone.accuracy == pytest.approx(together.accuracy) and alone.high - alone.low < together.high - together.low


def test_the_papers_constants():
    from ssl3d.tasks.patches import overlapping_sides, patch_sides

    made = {name: TASKS[name](make_encoder("unet", 3, 1, SMALL), **kind.PAPER) for name, kind in TASKS.items()}
    assert (made["rotation"].n_classes, made["location"].n_classes, made["jigsaw"].n_classes) == (10, 26, 1000)
    for name in ("location", "jigsaw"):
        task = made[name]
        assert patch_sides((128,) * 3, 3, task.gap, task.jitter, task.extent, 1) == [(39, 42, 3)] * 3
        assert task.head.embed.out_features == 64 and not task.even and task.samples_per_image == 2
    exemplar, cpc = made["exemplar"], made["cpc"]
    assert exemplar.rates == {"flip": 0.5, "rotate": 0.5, "right_angle": 0.5, "colour": 0.5, "zoom": 0.2}
    assert (exemplar.margin, exemplar.head.layers[-1].out_features) == (1, 1024)
    assert not exemplar.both_transformed and not exemplar.normalise and not exemplar.contrastive
    assert (cpc.overlap, cpc.first, cpc.head.layers[-1].out_features, cpc.context.gru.hidden_size) == (0.5, 2, 64, 1024)
    assert overlapping_sides((128,) * 3, cpc.grid, cpc.overlap, 1) == [(42, 21)] * 3
    assert {type(task.head.layers[-2]).__name__ for task in made.values()} == {"ReLU"}


def test_ties_score_as_chance():
    targets = torch.tensor([0, 1, 2, 3])
    assert hits(torch.zeros(4, 4), targets).tolist() == [0.25] * 4
    assert hits(torch.tensor([[1.0, 1.0, 0.0, 0.0]]).repeat(4, 1), targets).tolist() == [0.5, 0.5, 0, 0]
    assert hits(torch.eye(4), targets).mean() == 1
