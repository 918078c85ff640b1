"""The face of the package, for type checkers and editors. Made by tools/make_stub.py; do not edit."""

import os
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, Literal, Optional, Union

import numpy as np
import torch
from torch.utils.data import Dataset

from ssl3d import tasks as tasks
from ssl3d.files import Folder
from ssl3d.settings import Logger
from ssl3d.training.runs import Run as _Run
from ssl3d.data.cohorts import Case as Case
from ssl3d.data.cohorts import Cohort as Cohort
from ssl3d.data.layouts import download_msd as download_msd
from ssl3d.data.scans import read_scan as read_scan
from ssl3d.data.store import Store as Store
from ssl3d.errors import InputError as InputError
from ssl3d.evidence.answer import Answer as Answer
from ssl3d.evidence.experiments import Experiment as Experiment
from ssl3d.evidence.experiments import read_experiment as read_experiment
from ssl3d.evidence.experiments import run_experiment as run_experiment
from ssl3d.evidence.statistics import verdict as verdict
from ssl3d.networks.checkpoints import read_checkpoint as read_checkpoint
from ssl3d.networks.encoders import as_encoder as as_encoder
from ssl3d.networks.encoders import make_encoder as make_encoder
from ssl3d.networks.unet import Segmenter as Segmenter
from ssl3d.networks.weights import keep_encoder as keep_encoder
from ssl3d.networks.weights import load_encoder as load_encoder
from ssl3d.plots.slices import planes as planes
from ssl3d.plots.widgets import view as view
from ssl3d.training.monitor import live as live
from ssl3d.training.runs import read_log as read_log

__version__: str
__all__: list[str]

def open_cohort(
    source: str | os.PathLike[str],
    *,
    layout: Optional[Literal['msd', 'nnunet', 'brats', 'ukb', 'ixi', 'bids', 'aptos', 'idrid', 'medmnist', 'totalsegmentator', 'lits', 'acdc', 'btcv', 'brats-men-rt', 'kits', 'flare', 'csv', 'dicom', 'folder']] = None,
    images: str | dict[str, str] | None = None,
    masks: str | None = None,
    table: str | None = None,
    columns: dict[str, str] | None = None,
    modalities: str | Sequence[str] | None = None,
    on_error: Literal['raise', 'skip'] = 'raise',
) -> Cohort:
    """The table of cases at `source`; raises `InputError` for what is missing, empty or of no known layout.

    What to read:
        layout: public layout of the folder; recognised if not given. Default: None.
        images: pattern of the image files, or one pattern for each modality. Default: None.
        masks: pattern of the mask files. Default: None.
        table: CSV or TSV file with grade, age or sex of each case; its path from the folder. Default: None.
        columns: which column of a table holds image, mask, grade, subject, age or sex. Default: None.
        modalities: the modalities to use, in this order; all if not given. Default: None.
        on_error: what to do about a file that cannot be used: stop, or go on and list it in left_out.csv.
            Default: 'raise'.
    """
    ...

def prepare(
    source: str | os.PathLike[str] | Cohort,
    out: str | os.PathLike[str],
    *,
    layout: Optional[Literal['msd', 'nnunet', 'brats', 'ukb', 'ixi', 'bids', 'aptos', 'idrid', 'medmnist', 'totalsegmentator', 'lits', 'acdc', 'btcv', 'brats-men-rt', 'kits', 'flare', 'csv', 'dicom', 'folder']] = None,
    images: str | dict[str, str] | None = None,
    masks: str | None = None,
    table: str | None = None,
    columns: dict[str, str] | None = None,
    modalities: str | Sequence[str] | None = None,
    on_error: Literal['raise', 'skip'] = 'raise',
    size: int | None = None,
    spacing: Union[tuple[float, float, float], Literal['median'], None] = None,
    crop: bool = True,
    percentiles: tuple[float, float] | None = None,
    window: tuple[float, float] | None = None,
    dtype: Literal['float16', 'uint8'] = 'float16',
    test: float = 0.2,
    seed: int = 0,
    progress: bool = True,
    workers: int | None = None,
) -> Store:
    """Prepare every case of a cohort once, into a folder that any later run opens; goes on where it was stopped.

    Cases with the same voxels, as stored or mirrored, count as one subject (`copied` in manifest.json). Cases that look
    alike are told (`near_copies`): copies that were rounded, rescaled, mirrored, padded, cut a little, or saved at half
    the size. Not found are a crop of half a side, a cut copy with other values, and other scans of one person; a table
    with the columns id and subject can say those. Raises `InputError` for a file that cannot be used, for cases
    that are not alike, and for a folder that is taken.

    What to read:
        layout: public layout of the folder; recognised if not given. Default: None.
        images: pattern of the image files, or one pattern for each modality. Default: None.
        masks: pattern of the mask files. Default: None.
        table: CSV or TSV file with grade, age or sex of each case; its path from the folder. Default: None.
        columns: which column of a table holds image, mask, grade, subject, age or sex. Default: None.
        modalities: the modalities to use, in this order; all if not given. Default: None.
        on_error: what to do about a file that cannot be used: stop, or go on and list it in left_out.csv.
            Default: 'raise'.

    What is kept:
        size: voxels (pixels) per axis; if not given 128, and with a spacing whole scans, each of its own shape
            (from 8). Default: None.
        spacing: mm per voxel to the right, the front and the top, so that a centimetre is as long in every
            scan; with a size, a box of so many voxels around the middle; median for that of the cohort; if not
            given, every scan is stretched to a cube (above 0). Default: None.
        crop: pretrain on what is cropped to its content: a second version, which is kept; with a spacing, a
            part of the first one. Default: True.
        percentiles: clip intensities to these two percentiles of the foreground; to minimum and maximum if not
            given (from 0 up to 100). Default: None.
        window: intensity window: these two values become 0 and 1 in every scan, of the channel that is declared
            a CT (by CT or CTA as a word of its name, or in DICOM), else of all; if not given, -1000 to 1000 HU
            where a CT is declared, and percentiles where they are given and all channels are CT. Default: None.
        dtype: number format of the images; uint8 takes half the space. Default: 'float16'.

    Who is tested:
        test: share of the subjects that is kept for testing; 0 for a cohort to pretrain on only (from 0 up to
            1). Default: 0.2.

    Chance:
        seed: random seed: of the split, the label subset, the first weights, the order and the questions (from
            0). Default: 0.

    Machine:
        progress: show a progress bar, and a line about the result. Default: True.
        workers: cases prepared at a time; one per core if not given (from 1). Default: None.
    """
    ...

def demo(
    scans: str | os.PathLike[str] | None = None,
    out: str | os.PathLike[str] = 'runs/demo',
    *,
    seeds: int = 5,
    steps: int = 300,
    progress: bool = True,
) -> list[dict]:
    """Prepare, pretrain by location, fine-tune pretrained and from scratch, and tell whether it helped.

    How long:
        seeds: repetitions (from 1). Default: 5.
        steps: optimiser steps, in place of epochs (from 1). Default: 300.

    Machine:
        progress: show a progress bar, and a line about the result. Default: True.
    """
    ...

def finetune(
    store: str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    encoder: str | os.PathLike[str] | Callable[..., Any] | None = None,
    labels: float = 1.0,
    decoder: bool = False,
    sources: Sequence[int] | None = None,
    scaled: bool | None = None,
    head_bias: Optional[Literal['frequency', 'zero']] = None,
    architecture: Optional[Literal['unet', 'dynunet', 'dynunet-basic', 'densenet121', 'densenet121-batchnorm', 'resnet18', 'resnet50', 'swinunetr', 'segresnet', 'resenc', 'plainunet']] = None,
    widths: Sequence[int] = (32, 64, 128, 256, 512),
    slices: bool = False,
    patch: int | None = None,
    preset: Optional[Literal['paper']] = None,
    augment: Optional[Literal['none', 'light', 'full']] = None,
    mirror: Sequence[int] | None = None,
    goal: Literal['segmentation', 'classification', 'regression'] = 'segmentation',
    optimiser: Literal['adam', 'adamw', 'sgd'] = 'adam',
    schedule: Optional[Literal['constant', 'cosine', 'polynomial']] = None,
    lr_warmup: int = 0,
    weight_decay: float | None = None,
    clip: float | None = None,
    epochs: int = 100,
    steps: int | None = None,
    batch_size: int | None = None,
    lr: float | None = None,
    warmup: int | None = None,
    logger: Union[Literal['csv', 'tensorboard'], Logger, Sequence[Union[Literal['csv', 'tensorboard'], Logger]]] = 'csv',
    track: int | Sequence[int] | None = None,
    fold: Sequence[int] | None = None,
    allow_seen: Optional[Literal['names', 'all']] = None,
    validate: bool = False,
    seed: int = 0,
    progress: bool = True,
    accelerator: str = 'auto',
    devices: int = 1,
    precision: Literal['32-true', '16-mixed', 'bf16-mixed'] = '32-true',
    class_weights: Sequence[float] | None = None,
    regions: dict[str, Sequence[int]] | None = None,
    tolerance: float | None = None,
    upward: Literal['residual', 'nnunet'] = 'residual',
    target: Optional[Literal['grade', 'sex', 'age']] = None,
    head: Literal['hidden', 'linear'] = 'hidden',
    ordinal: bool = False,
    balanced: bool = False,
) -> Run:
    """Train a network for a goal, from an encoder or from scratch, and score it on the store's test subjects.

    Returns the run. `scores.csv` has the scores: of masks, Dice, 95 % Hausdorff distance (mm) and surface Dice of each
    case and class on the grid of the scan (report these; `dice_store` and `hausdorff95_store` are on the store's), and
    `regions.csv` those of regions. A class that neither the mask nor the prediction has is right: its Dice and surface
    Dice are 1 and its distance is NaN; one that only one of them has, has a Dice and a surface Dice of 0 and an
    infinite distance. Grades have quadratic weighted kappa and
    accuracy, ages R² and the mean absolute error in years, and `predictions.csv` the answer for each case (paper,
    section 4). The encoder is kept, so that other runs can begin with it (supervised pretraining). Raises `InputError`
    for a store, encoder or option that cannot be used, and for a taken folder.

    Start from:
        encoder: what to start from: a run, or (in Python) an encoder of your own from `ssl3d.as_encoder`, of
            which a copy is trained; random weights if not given. Default: None.
        labels: label fraction: share of the labelled training cases to use; subsets of one seed are nested
            (above 0 up to 1). Default: 1.0.
        decoder: begin with the decoder of the run that is given as encoder, too, where it was trained for
            masks; its last layer is new, and a warm-up freezes the encoder alone. Default: False.
        sources: for each modality of the store, the channel of the pretrained encoder that its first weights
            are copied from; if not given, in turn (from 0). Default: None.
        scaled: where one channel is copied to several modalities, divide its weights by the number of copies;
            true if not given, false in the paper. Default: None.
        head_bias: what the last layer answers before the first step: each class as often as the labels of the
            training cases have it (frequency; of ages their mean), or all alike (zero); frequency if not given,
            and with the paper's preset zero. Default: None.

    Network:
        architecture: encoder (backbone) network; dynunet is MONAI's with shortcuts (res_block), dynunet-basic
            without; resenc and plainunet are nnU-Net's; if not given unet, and with the paper's preset
            densenet121-batchnorm for pictures. Default: None.
        widths: filters (channels) per level of the encoders unet, dynunet, dynunet-basic, resenc and plainunet;
            swinunetr and segresnet take five and four, each twice the one before (from 2). Default: (32, 64,
            128, 256, 512).
        slices: train a 2D network on axial slices of volumes. Default: False.
        patch: side in voxels of the windows to train on, one of each image in a step, for volumes that do not
            fit into memory; whole images if not given (from 8). Default: None.

    What to learn:
        preset: the paper's values for what is not given; it had volumes of 128 voxels and pictures of 224
            pixels a side. Default: None.
        augment: random changes of the training images: none; light; or full, as strong as nnU-Net's; if not
            given light to fine-tune for masks of volumes, else none. Default: None.
        mirror: axes along which augmentation also mirrors, where sides do not matter: of volumes 0 left-right,
            1 back-front, 2 feet-head; of pictures 0 up-down, 1 left-right; none if not given (from 0 up to 2).
            Default: None.
        goal: downstream task: segmentation, classification or regression. Default: 'segmentation'.

    How long:
        optimiser: optimiser: adam (the paper's), adamw (its weight decay acts on the weights alone), or sgd
            (with Nesterov momentum of 0.99, as nnU-Net has it). Default: 'adam'.
        schedule: learning rate over the steps: constant, or falling to zero at the last one as a half cosine or
            as a polynomial, (1 - step / steps) to the power of 0.9; if not given polynomial to fine-tune for
            masks of volumes, else constant. Default: None.
        lr_warmup: steps at the beginning in which the learning rate rises to its value, linearly (from 0).
            Default: 0.
        weight_decay: weight decay; if not given 0 with adam, 0.01 with adamw, and 3e-5 with sgd (from 0).
            Default: None.
        clip: gradient clipping: the largest norm of all gradients together; none if not given (above 0).
            Default: None.
        epochs: passes over the training cases; an incomplete last batch is left out (from 1). Default: 100.
        steps: optimiser steps, in place of epochs (from 1). Default: None.
        batch_size: cases per step (in fine-tuning, if not given: 2 to segment, 8 to classify or regress) (from
            1). Default: None.
        lr: learning rate, the highest of its schedule; if not given 1e-3 (to pretrain on pictures 5e-4; for the
            task exemplar 1e-4, at which it does not collapse), and with sgd 1e-2 (above 0). Default: None.
        warmup: epochs (steps, if steps are given) at the beginning with a frozen encoder; none if not given,
            and with the paper's preset 25 epochs for masks, 5 for an answer per image (from 0). Default: None.

    Watch:
        logger: who is told of loss, rate, scores and pictures besides log.csv, which is always written:
            tensorboard (into the run's folder), or (in Python) a logger of Lightning, or several of these.
            Default: 'csv'.
        track: steps between two scorings of validation people, who are then not trained on, into observed.csv,
            or a list of the steps after which they are scored; none if not given (from 1). Default: None.

    Who is tested:
        fold: cross-validation fold to test on: its index from 0, the number of folds, and (a third number)
            which drawing of them; the store's own test subjects if not given (from 0). Default: None.
        allow_seen: allow test subjects whom pretraining has seen: names (subjects of equal names are other
            people), or all (it is intended). Default: None.
        validate: score on validation subjects, a fifth of those for training (with labels below 1, of the
            labelled ones), and train on the others. Default: False.

    Chance:
        seed: random seed: of the split, the label subset, the first weights, the order and the questions (from
            0). Default: 0.

    Machine:
        progress: show a progress bar, and a line about the result. Default: True.
        accelerator: device, by Lightning's name: cpu, gpu, mps or auto. Default: 'auto'.
        devices: how many devices share each step; on a CPU, processes (from 1). Default: 1.
        precision: numeric precision, by Lightning's name. Default: '32-true'.

    Segmentation:
        class_weights: weights of the classes in the loss, background first; equal if not given (from 0).
            Default: None.
        regions: regions to score besides the classes: for each the codes that it joins; those of BraTS for its
            layout. Default: None.
        tolerance: mm within which a surface counts as found (surface Dice); if not given, each scan's largest
            spacing (from 0). Default: None.
        upward: decoder: residual blocks, for any encoder; or nnunet, nnU-Net's own, for resenc and plainunet.
            Default: 'residual'.

    Classification and regression:
        target: what to tell of an image: grade (if not given, for classification), sex, or age (for
            regression). Default: None.
        head: layers after the encoder: one hidden layer of 256, or linear only. Default: 'hidden'.

    Classification:
        ordinal: grades in order: learn the answers to "more than 0?", "more than 1?" and so on. Default: False.
        balanced: give rare grades more weight in the loss. Default: False.
    """
    ...

def predict(
    run: str | os.PathLike[str],
    scans: str | os.PathLike[str] | list[str | os.PathLike[str]] | tuple[str | os.PathLike[str], ...] | Cohort,
    out: str | os.PathLike[str],
    *,
    layout: Optional[Literal['msd', 'nnunet', 'brats', 'ukb', 'ixi', 'bids', 'aptos', 'idrid', 'medmnist', 'totalsegmentator', 'lits', 'acdc', 'btcv', 'brats-men-rt', 'kits', 'flare', 'csv', 'dicom', 'folder']] = None,
    images: str | dict[str, str] | None = None,
    masks: str | None = None,
    table: str | None = None,
    columns: dict[str, str] | None = None,
    modalities: str | Sequence[str] | None = None,
    on_error: Literal['raise', 'skip'] = 'raise',
    probabilities: bool = False,
    progress: bool = True,
    accelerator: str = 'auto',
) -> list[Path]:
    """Apply a run to other scans; the run prepares them as it was trained, and no store is needed.

    Segmentation writes a mask for each case, `ID.nii.gz`, in the grid, axes and affine of its (first) file and in the
    codes of the training masks (PNG for pictures, NPY for NumPy files), and with `probabilities` those of each class.
    Other goals write `predictions.csv` with a row for each case: the predicted grade and the probability of each, or
    the age. Of the store that the run was trained on, the test cases are taken; of another one, all. What is there
    already is kept. Scans that are unusual for the run, or were trained on, are named in `notes.csv` and in a warning
    for each kind. Raises `InputError` where anything does not fit, a scan is of other modalities or of another kind of
    intensities, or is missing or has changed.

    What to read:
        layout: public layout of the folder; recognised if not given. Default: None.
        images: pattern of the image files, or one pattern for each modality. Default: None.
        masks: pattern of the mask files. Default: None.
        table: CSV or TSV file with grade, age or sex of each case; its path from the folder. Default: None.
        columns: which column of a table holds image, mask, grade, subject, age or sex. Default: None.
        modalities: the modalities to use, in this order; all if not given. Default: None.
        on_error: what to do about a file that cannot be used: stop, or go on and list it in left_out.csv.
            Default: 'raise'.

    What to write:
        probabilities: write the probability of each class, too, beside the masks. Default: False.

    Machine:
        progress: show a progress bar, and a line about the result. Default: True.
        accelerator: device, by Lightning's name: cpu, gpu, mps or auto. Default: 'auto'.
    """
    ...

def experiment(
    description: str | os.PathLike[str] | Experiment,
    out: str | os.PathLike[str],
    *,
    progress: bool = True,
    processes: int | None = None,
    ray: str | None = None,
    cpus: int = 1,
    gpus: float = 0.0,
) -> Answer:
    """Make all runs of an experiment, and say what they show; raises `InputError` for one that cannot be run.

    Machine:
        progress: show a progress bar, and a line about the result. Default: True.
        processes: processes that make runs side by side; one for each core that has 2 GiB of memory if not
            given, and one where there is a GPU (from 1). Default: None.
        ray: local for Ray on this machine; auto, or the address of a Ray cluster; no Ray if not given. Default:
            None.
        cpus: cores for each run on Ray (from 1). Default: 1.
        gpus: GPUs for each run on Ray (from 0). Default: 0.0.
    """
    ...

def plan_experiment(
    scans: str | os.PathLike[str],
    file: str | os.PathLike[str],
    *,
    layout: Optional[Literal['msd', 'nnunet', 'brats', 'ukb', 'ixi', 'bids', 'aptos', 'idrid', 'medmnist', 'totalsegmentator', 'lits', 'acdc', 'btcv', 'brats-men-rt', 'kits', 'flare', 'csv', 'dicom', 'folder']] = None,
    images: str | dict[str, str] | None = None,
    masks: str | None = None,
    table: str | None = None,
    columns: dict[str, str] | None = None,
    modalities: str | Sequence[str] | None = None,
    on_error: Literal['raise', 'skip'] = 'raise',
    goal: Literal['segmentation', 'classification', 'regression'] | None = None,
    progress: bool = True,
) -> Path:
    """Write the description of an experiment on a folder of scans, for `ssl3d.experiment` (in a shell `ssl3d init`).

    It has what was found in the folder, with the reasons as comments: who is tested, label fractions, size, arms, and
    how long it takes on this machine, which is measured in less than a minute. Raises `InputError` for a folder that is
    missing, for one without labels, for too few labelled people, and for a file that is there already.

    What to read:
        layout: public layout of the folder; recognised if not given. Default: None.
        images: pattern of the image files, or one pattern for each modality. Default: None.
        masks: pattern of the mask files. Default: None.
        table: CSV or TSV file with grade, age or sex of each case; its path from the folder. Default: None.
        columns: which column of a table holds image, mask, grade, subject, age or sex. Default: None.
        modalities: the modalities to use, in this order; all if not given. Default: None.
        on_error: what to do about a file that cannot be used: stop, or go on and list it in left_out.csv.
            Default: 'raise'.

    What to learn:
        goal: downstream task: segmentation, classification or regression. Default: None.

    Machine:
        progress: show a progress bar, and a line about the result. Default: True.
    """
    ...

def pretrain(
    task: Literal['rotation', 'location', 'jigsaw', 'exemplar', 'cpc'],
    images: str | os.PathLike[str] | Sequence[Any] | Iterable[Any] | Dataset[Any],
    out: str | os.PathLike[str],
    *,
    encoder: str | os.PathLike[str] | Callable[..., Any] | None = None,
    architecture: Optional[Literal['unet', 'dynunet', 'dynunet-basic', 'densenet121', 'densenet121-batchnorm', 'resnet18', 'resnet50', 'swinunetr', 'segresnet', 'resenc', 'plainunet']] = None,
    widths: Sequence[int] = (32, 64, 128, 256, 512),
    slices: bool = False,
    patch: int | None = None,
    preset: Optional[Literal['paper']] = None,
    augment: Optional[Literal['none', 'light', 'full']] = None,
    mirror: Sequence[int] | None = None,
    options: dict[str, Any] | None = None,
    optimiser: Literal['adam', 'adamw', 'sgd'] = 'adam',
    schedule: Optional[Literal['constant', 'cosine', 'polynomial']] = None,
    lr_warmup: int = 0,
    weight_decay: float | None = None,
    clip: float | None = None,
    epochs: int = 100,
    steps: int | None = None,
    batch_size: int | None = 4,
    lr: float | None = None,
    logger: Union[Literal['csv', 'tensorboard'], Logger, Sequence[Union[Literal['csv', 'tensorboard'], Logger]]] = 'csv',
    probe: Optional[Literal['grade', 'sex', 'age', 'mask']] = None,
    probe_every: int = 100,
    keep: Literal['last', 'probe'] = 'last',
    fold: Sequence[int] | None = None,
    seed: int = 0,
    progress: bool = True,
    accelerator: str = 'auto',
    devices: int = 1,
    precision: Literal['32-true', '16-mixed', 'bf16-mixed'] = '32-true',
) -> Run:
    """Train an encoder on a proxy task and keep it in a run folder; returns the run (paper, sections 3 and A).

    Images are tensors (C, *space) with values in [0, 1]: of a prepared store, a PyTorch `Dataset` or a list; or batches
    (B, C, *space) of a `DataLoader` or another iterable, which has a `batch_size` of its own. A probe reads labels of
    training people and is scored on validation people; the training does not see it. Raises `InputError` for images, a
    task or an option that cannot be used, and for a folder of another run.

    Start from:
        encoder: what to start from: a run, or (in Python) an encoder of your own from `ssl3d.as_encoder`, of
            which a copy is trained; random weights if not given. Default: None.

    Network:
        architecture: encoder (backbone) network; dynunet is MONAI's with shortcuts (res_block), dynunet-basic
            without; resenc and plainunet are nnU-Net's; if not given unet, and with the paper's preset
            densenet121-batchnorm for pictures. Default: None.
        widths: filters (channels) per level of the encoders unet, dynunet, dynunet-basic, resenc and plainunet;
            swinunetr and segresnet take five and four, each twice the one before (from 2). Default: (32, 64,
            128, 256, 512).
        slices: train a 2D network on axial slices of volumes. Default: False.
        patch: side in voxels of the windows to train on, one of each image in a step, for volumes that do not
            fit into memory; whole images if not given (from 8). Default: None.

    What to learn:
        preset: the paper's values for what is not given; it had volumes of 128 voxels and pictures of 224
            pixels a side. Default: None.
        augment: random changes of the training images: none; light; or full, as strong as nnU-Net's; if not
            given light to fine-tune for masks of volumes, else none. Default: None.
        mirror: axes along which augmentation also mirrors, where sides do not matter: of volumes 0 left-right,
            1 back-front, 2 feet-head; of pictures 0 up-down, 1 left-right; none if not given (from 0 up to 2).
            Default: None.
        options: options of the proxy task; they take precedence over the preset's. Default: None.

    How long:
        optimiser: optimiser: adam (the paper's), adamw (its weight decay acts on the weights alone), or sgd
            (with Nesterov momentum of 0.99, as nnU-Net has it). Default: 'adam'.
        schedule: learning rate over the steps: constant, or falling to zero at the last one as a half cosine or
            as a polynomial, (1 - step / steps) to the power of 0.9; if not given polynomial to fine-tune for
            masks of volumes, else constant. Default: None.
        lr_warmup: steps at the beginning in which the learning rate rises to its value, linearly (from 0).
            Default: 0.
        weight_decay: weight decay; if not given 0 with adam, 0.01 with adamw, and 3e-5 with sgd (from 0).
            Default: None.
        clip: gradient clipping: the largest norm of all gradients together; none if not given (above 0).
            Default: None.
        epochs: passes over the training cases; an incomplete last batch is left out (from 1). Default: 100.
        steps: optimiser steps, in place of epochs (from 1). Default: None.
        batch_size: cases per step (in fine-tuning, if not given: 2 to segment, 8 to classify or regress) (from
            1). Default: 4.
        lr: learning rate, the highest of its schedule; if not given 1e-3 (to pretrain on pictures 5e-4; for the
            task exemplar 1e-4, at which it does not collapse), and with sgd 1e-2 (above 0). Default: None.

    Watch:
        logger: who is told of loss, rate, scores and pictures besides log.csv, which is always written:
            tensorboard (into the run's folder), or (in Python) a logger of Lightning, or several of these.
            Default: 'csv'.
        probe: linear probe: what to read from the encoder while it trains, for validation subjects, into
            observed.csv. Default: None.
        probe_every: steps between two probes (from 1). Default: 100.
        keep: which checkpoint is kept: the last, or the one with the best validation probe score. Default:
            'last'.

    Who is tested:
        fold: cross-validation fold to test on: its index from 0, the number of folds, and (a third number)
            which drawing of them; the store's own test subjects if not given (from 0). Default: None.

    Chance:
        seed: random seed: of the split, the label subset, the first weights, the order and the questions (from
            0). Default: 0.

    Machine:
        progress: show a progress bar, and a line about the result. Default: True.
        accelerator: device, by Lightning's name: cpu, gpu, mps or auto. Default: 'auto'.
        devices: how many devices share each step; on a CPU, processes (from 1). Default: 1.
        precision: numeric precision, by Lightning's name. Default: '32-true'.
    """
    ...

class Run(_Run):
    def features(
        self,
        scans: Folder | Sequence[Folder] | Cohort | torch.Tensor,
        *,
        layout: Optional[Literal['msd', 'nnunet', 'brats', 'ukb', 'ixi', 'bids', 'aptos', 'idrid', 'medmnist', 'totalsegmentator', 'lits', 'acdc', 'btcv', 'brats-men-rt', 'kits', 'flare', 'csv', 'dicom', 'folder']] = None,
        images: str | dict[str, str] | None = None,
        masks: str | None = None,
        table: str | None = None,
        columns: dict[str, str] | None = None,
        modalities: str | Sequence[str] | None = None,
        on_error: Literal['raise', 'skip'] = 'raise',
        progress: bool = True,
        accelerator: str = 'auto',
    ) -> tuple[list[str], np.ndarray]:
        """One feature vector for each scan: the mean of the encoder's coarsest map over space.

        What to read:
            layout: public layout of the folder; recognised if not given. Default: None.
            images: pattern of the image files, or one pattern for each modality. Default: None.
            masks: pattern of the mask files. Default: None.
            table: CSV or TSV file with grade, age or sex of each case; its path from the folder. Default: None.
            columns: which column of a table holds image, mask, grade, subject, age or sex. Default: None.
            modalities: the modalities to use, in this order; all if not given. Default: None.
            on_error: what to do about a file that cannot be used: stop, or go on and list it in left_out.csv.
                Default: 'raise'.

        Machine:
            progress: show a progress bar, and a line about the result. Default: True.
            accelerator: device, by Lightning's name: cpu, gpu, mps or auto. Default: 'auto'.
        """
        ...

    def predict(
        self,
        scans: Folder | Sequence[Folder] | Cohort,
        out: str | os.PathLike[str],
        *,
        layout: Optional[Literal['msd', 'nnunet', 'brats', 'ukb', 'ixi', 'bids', 'aptos', 'idrid', 'medmnist', 'totalsegmentator', 'lits', 'acdc', 'btcv', 'brats-men-rt', 'kits', 'flare', 'csv', 'dicom', 'folder']] = None,
        images: str | dict[str, str] | None = None,
        masks: str | None = None,
        table: str | None = None,
        columns: dict[str, str] | None = None,
        modalities: str | Sequence[str] | None = None,
        on_error: Literal['raise', 'skip'] = 'raise',
        probabilities: bool = False,
        progress: bool = True,
        accelerator: str = 'auto',
    ) -> list[Path]:
        """Masks in the grid of each scan, or a table with the answer for each scan; see `ssl3d.predict`.

        What to read:
            layout: public layout of the folder; recognised if not given. Default: None.
            images: pattern of the image files, or one pattern for each modality. Default: None.
            masks: pattern of the mask files. Default: None.
            table: CSV or TSV file with grade, age or sex of each case; its path from the folder. Default: None.
            columns: which column of a table holds image, mask, grade, subject, age or sex. Default: None.
            modalities: the modalities to use, in this order; all if not given. Default: None.
            on_error: what to do about a file that cannot be used: stop, or go on and list it in left_out.csv.
                Default: 'raise'.

        What to write:
            probabilities: write the probability of each class, too, beside the masks. Default: False.

        Machine:
            progress: show a progress bar, and a line about the result. Default: True.
            accelerator: device, by Lightning's name: cpu, gpu, mps or auto. Default: 'auto'.
        """
        ...

    def export(
        self,
        to: str,
        folder: str | os.PathLike[str],
        *,
        licence: str | None = None,
        data: str | None = None,
        store: str | os.PathLike[str] | None = None,
        plans: str | os.PathLike[str] | None = None,
    ) -> Path:
        """Write it in the form that MONAI, the Hugging Face Hub or nnU-Net read, without a name of anybody in it.

        What to write:
            licence: licence of the weights by its SPDX identifier, one that the scans allow; without one nobody
                else may use them. Default: None.
            data: what the scans are, in a sentence for others to read, without names. Default: None.
            store: prepared store on whose validation people the encoder is probed, so that its page has a score
                with an interval (hub). Default: None.
            plans: plans.json of your data set, which nnU-Net wrote, to compare the network with (nnunet). Default:
                None.
        """
        ...
