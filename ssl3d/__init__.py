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
    as_encoder        any torch module of your own as an encoder
    keep_encoder      an encoder from a loop of your own, kept as a run
    load_encoder      the encoder of a pretraining run, of a hub folder, or of the Hugging Face Hub
    read_checkpoint   weights of somebody else's checkpoint, as an encoder
    live              watch runs while they train, in JupyterLab
    Run               a run folder, opened: summary(), plot(), encoder, features(scans), predict(scans, out),
                      export("monai" | "hub" | "nnunet", folder)
    read_log          the log of a run, column by column

From an encoder and a few labels to predictions
    finetune          train a network for masks, grades or ages, and score it
    predict           apply a run to other scans: masks in the grid of each, or a table
    Segmenter         an encoder with a decoder, as a torch module

Does pretraining help?
    plan_experiment   the description of an experiment, written for a folder of scans
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

__version__ = "0.1.0"

_MODULES = {  # for mypy and editors, tools/make_stub.py writes them into __init__.pyi
    "data.cohorts": ("Case", "Cohort"),
    "data.layouts": ("download_msd", "open_cohort"),
    "data.prepare": ("prepare",),
    "data.scans": ("read_scan",),
    "data.store": ("Store",),
    "demo_cohort": ("demo",),
    "downstream.finetune": ("finetune",),
    "downstream.predict": ("predict",),
    "errors": ("InputError",),
    "evidence.answer": ("Answer", "experiment"),
    "evidence.experiments": ("Experiment", "read_experiment", "run_experiment"),
    "evidence.planning": ("plan_experiment",),
    "evidence.statistics": ("verdict",),
    "networks.checkpoints": ("read_checkpoint",),
    "networks.encoders": ("as_encoder", "make_encoder"),
    "networks.unet": ("Segmenter",),
    "networks.weights": ("keep_encoder", "load_encoder"),
    "plots.slices": ("planes",),
    "plots.widgets": ("view",),
    "training.monitor": ("live",),
    "training.pretrain": ("pretrain",),
    "training.runs": ("Run", "read_log"),
}
_HOME = {name: module for module, names in _MODULES.items() for name in names}

__all__ = ["tasks", *_HOME]


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
