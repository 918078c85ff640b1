"""Best, median and worst case: chosen by a rule, kept in little room, shown as they were predicted."""

import matplotlib.pyplot as plt
import numpy as np
import pytest
from conftest import SMALL

from ssl3d.downstream.extremes import (
    SIDE,
    Kept,
    draw_examples,
    examples_of,
    extremes,
    keep_examples,
    mean_scores,
    read_examples,
)
from ssl3d.downstream.finetune import finetune
from ssl3d.downstream.segmentation import segment
from ssl3d.errors import InputError


@pytest.fixture(scope="module")
def run(store, tmp_path_factory):
    return finetune(store, tmp_path_factory.mktemp("extremes") / "run", steps=3, widths=SMALL, progress=False)


def test_cases_are_chosen_by_their_scores_alone():
    scores = {"c": 0.2, "a": 0.9, "d": 0.5, "b": 0.5, "e": 0.1}
    assert extremes(scores) == {"best": "a", "median": "d", "worst": "e"}, "five cases: b and d are alike, d is third"
    assert extremes(dict(sorted(scores.items()))) == extremes(scores), "whatever their order"
    assert extremes({"x": 0.1, "y": 0.2}) == {"best": "y", "worst": "x"} and extremes({"x": 0}) == {"only": "x"}
    rows = [{"case": "a", "class": k, "dice": dice} for k, dice in (("x", 1.0), ("y", 0.0))]
    assert mean_scores(rows) == {"a": 0.5}


def test_what_is_shown_is_what_the_network_marks(store, run):
    scores = mean_scores(run.scores)
    examples = examples_of(store, scores, {"net": (lambda case: run.network, scores)})
    assert [one.which for one in examples] == ["best", "median", "worst"]
    order = sorted(scores, key=scores.get)
    assert scores[examples[0].case] == scores[order[-1]] and scores[examples[-1].case] == scores[order[0]]
    for one in examples:
        truth = np.asarray(store.mask(one.case))
        at = int((truth > 0).sum(axis=(0, 1)).argmax())
        found = segment(run.network, store, [one.case])[one.case].on_store
        assert np.array_equal(one.truth, truth[:, ::-1, at].T), "the front is up, and left is left"
        assert np.array_equal(one.marked["net"][0], found[:, ::-1, at].T)
        assert one.marked["net"][1] == scores[one.case] and one.subject == store.cases[one.case]["subject"]
        picture = store.image(one.case)[-1, :, ::-1, at].T.astype(float)
        assert one.image.dtype == np.uint8 and np.corrcoef(one.image.ravel(), picture.ravel())[0, 1] > 0.999
    draw_examples(examples, store.classes)
    assert {ax.get_title().split("Dice ")[-1] for ax in plt.gcf().axes[2::3]} == \
        {f"{scores[one.case]:.2f}" for one in examples}  # fmt: skip
    plt.close("all")


@pytest.mark.parametrize("shape", [(512, 512), (3, 700, 900), (40, 1300)])
def test_what_is_kept_is_small(tmp_path, shape):
    """However large a scan is, three cases with two networks stay below 1.3 MB."""
    from ssl3d.downstream.extremes import as_bytes, slice_of

    rng = np.random.default_rng(0)
    flat = slice_of(as_bytes(rng.random(shape)), None)
    mask = slice_of(rng.integers(0, 200, shape[-2:]).astype(np.uint8), None)
    assert max(flat.shape[-2:]) <= SIDE and mask.shape == flat.shape[-2:]
    kept = [Kept(which, "c", "p", flat, mask, {"a": (mask, 0.5), "b": (mask, 0.1)}) for which in ("best", "worst", "x")]
    keep_examples(tmp_path / "e.npz", kept, {"seed": 0})
    assert (tmp_path / "e.npz").stat().st_size < (1.3e6 if len(shape) == 2 else 2.1e6)
    back, about = read_examples(tmp_path / "e.npz")
    assert about == {"seed": 0} and np.array_equal(back[0].image, flat) and back[2].marked["b"][1] == 0.1


@pytest.mark.parametrize("content", [b"", b"no archive", None])
def test_a_damaged_file_is_named(tmp_path, content):
    file = tmp_path / "examples.npz"
    if content is None:
        np.savez(file, other=np.zeros(3))
    else:
        file.write_bytes(content)
    with pytest.raises(InputError, match="examples.npz: holds no examples"):
        read_examples(file)
    with pytest.raises(InputError, match="nowhere.npz: holds no examples"):
        read_examples(tmp_path / "nowhere.npz")
