"""Options: whatever NumPy gives is a plain number in all that is written of them."""

import json

import numpy as np
import pytest
import yaml

from ssl3d.errors import InputError
from ssl3d.settings import ClassificationOptions, Finetuning, Preparing, Pretraining, SegmentationOptions, plain

pytestmark = pytest.mark.quick


@pytest.mark.parametrize(("made", "name", "same"), [
    (lambda: Preparing(window=(np.float32(0), np.float32(200))), "window", (0, 200)),
    (lambda: Preparing(size=np.array(32), crop=np.bool_(False)), "crop", False),
    (lambda: Finetuning(widths=[np.int64(8), np.int32(16)]), "widths", (8, 16)),
    (lambda: SegmentationOptions(class_weights=np.array([1, 5.0]).tolist()), "class_weights", (1, 5)),
    (lambda: SegmentationOptions(class_weights=(np.float64(1), np.float16(5))), "class_weights", (1, 5)),
    (lambda: SegmentationOptions(regions={"a": [np.int64(1)]}), "regions", {"a": [1]}),
    (lambda: Pretraining(options={"n": np.int64(5), "of": {"deep": (np.float32(0.5),)}}), "options",
     {"n": 5, "of": {"deep": (0.5,)}}),
    (lambda: ClassificationOptions(ordinal=np.bool_(True)), "ordinal", True)])
def test_numbers_of_numpy_are_plain_numbers(made, name, same):
    value = getattr(made(), name)
    assert value == same
    json.dumps(value), yaml.safe_dump(plain(value) if not isinstance(value, tuple) else [*value])


def test_what_does_not_fit_is_refused_whoever_counts_it():
    for wrong in ((np.float32(8.5), np.int64(16)), (np.int64(1), 8), (np.nan, 8)):
        with pytest.raises(InputError, match="widths is"):
            Finetuning(widths=wrong)
