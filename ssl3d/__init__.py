"""Self-supervised learning from unlabelled 3D medical scans, in PyTorch and MONAI.

From scans to arrays
    open_cohort       a folder of scans in any layout, as a Cohort
    download_msd      fetch a task of the Medical Segmentation Decathlon
    read_scan         one scan as a tensor (C, X, Y, Z), with its affine
    prepare           a cohort as a Store: arrays that training reads, and a split by person
    Cohort, Case      a table of cases; one case: its files, and what is known of it
    Store             a prepared store, opened

From arrays to an encoder
    tasks             the proxy tasks: tasks.Rotation, Location, Jigsaw, Exemplar, CPC
    pretrain          train an encoder by a proxy task
    make_encoder      a fresh encoder by its name, from a seed
    load_encoder      the encoder of a pretraining run
    live              watch runs while they train, in JupyterLab
    Run               a run folder, opened: its log, card, encoder, scores, summary() and plot()
    read_log          the log of a run, column by column

From an encoder and a few labels to predictions
    finetune          train a segmentation network, and score it
    classify          train a network for a grade, sex or age, and score it
    predict           masks in the grid of each scan
    Segmenter         an encoder with a decoder, as a torch module
    load_segmenter    the network of a fine-tuning run
    summary           the scores of a fine-tuning run, in one line

Does pretraining help?
    experiment        from a description to an answer
    Answer            what an experiment found: verdicts with intervals, every score, a page
    Experiment        what is compared with what, on which scans
    read_experiment   an Experiment from a YAML file
    run_experiment    all its runs; goes on where it was stopped
    verdict           what may be concluded: differences with intervals
    demo              all of it, small, on the sample brains

To look at
    planes            a volume in three planes
    view              a volume in an interactive viewer

    InputError        what is raised for every mistake in the input: file, fault and cure

`help(ssl3d.prepare)` explains one of them. Names are loaded when they are first used, so `import ssl3d` is quick.
"""

from importlib import import_module
from typing import TYPE_CHECKING

__version__ = "0.1.0"

if TYPE_CHECKING:  # for mypy and editors; the same names as in _MODULES, which a test compares
    from ssl3d import tasks as tasks
    from ssl3d.data.cohorts import Case as Case
    from ssl3d.data.cohorts import Cohort as Cohort
    from ssl3d.data.layouts import download_msd as download_msd
    from ssl3d.data.layouts import open_cohort as open_cohort
    from ssl3d.data.prepare import prepare as prepare
    from ssl3d.data.scans import read_scan as read_scan
    from ssl3d.data.store import Store as Store
    from ssl3d.demo_cohort import demo as demo
    from ssl3d.downstream.classification import classify as classify
    from ssl3d.downstream.predict import predict as predict
    from ssl3d.downstream.segmentation import finetune as finetune
    from ssl3d.downstream.segmentation import load_segmenter as load_segmenter
    from ssl3d.downstream.segmentation import summary as summary
    from ssl3d.errors import InputError as InputError
    from ssl3d.evidence.answer import Answer as Answer
    from ssl3d.evidence.answer import experiment as experiment
    from ssl3d.evidence.experiments import Experiment as Experiment
    from ssl3d.evidence.experiments import read_experiment as read_experiment
    from ssl3d.evidence.experiments import run_experiment as run_experiment
    from ssl3d.evidence.statistics import verdict as verdict
    from ssl3d.networks.encoders import make_encoder as make_encoder
    from ssl3d.networks.unet import Segmenter as Segmenter
    from ssl3d.networks.weights import load_encoder as load_encoder
    from ssl3d.plots.slices import planes as planes
    from ssl3d.plots.widgets import view as view
    from ssl3d.training.monitor import live as live
    from ssl3d.training.pretrain import pretrain as pretrain
    from ssl3d.training.runs import Run as Run
    from ssl3d.training.runs import read_log as read_log

_MODULES = {
    "data.cohorts": ("Case", "Cohort"),
    "data.layouts": ("download_msd", "open_cohort"),
    "data.prepare": ("prepare",),
    "data.scans": ("read_scan",),
    "data.store": ("Store",),
    "demo_cohort": ("demo",),
    "downstream.classification": ("classify",),
    "downstream.predict": ("predict",),
    "downstream.segmentation": ("finetune", "load_segmenter", "summary"),
    "errors": ("InputError",),
    "evidence.answer": ("Answer", "experiment"),
    "evidence.experiments": ("Experiment", "read_experiment", "run_experiment"),
    "evidence.statistics": ("verdict",),
    "networks.encoders": ("make_encoder",),
    "networks.unet": ("Segmenter",),
    "networks.weights": ("load_encoder",),
    "plots.slices": ("planes",),
    "plots.widgets": ("view",),
    "training.monitor": ("live",),
    "training.pretrain": ("pretrain",),
    "training.runs": ("Run", "read_log"),
}
_HOME = {name: module for module, names in _MODULES.items() for name in names}

__all__ = ["tasks", *_HOME]


if not TYPE_CHECKING:  # or mypy would take any name

    def __getattr__(name: str) -> object:
        """A name of the face, loaded from its module when it is first used."""
        if name == "tasks":
            return import_module("ssl3d.tasks")
        if name not in _HOME:
            raise AttributeError(f"module 'ssl3d' has no attribute '{name}'")
        globals()[name] = getattr(import_module(f"ssl3d.{_HOME[name]}"), name)
        return globals()[name]


def __dir__() -> list[str]:
    return sorted([*__all__, "__version__"])
