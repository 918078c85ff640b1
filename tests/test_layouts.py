"""Folders as people have them: public layouts, patterns, tables, and every real cohort at hand."""

import gzip
import json
import tarfile
import threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest
from conftest import RNG, SAMPLES, msd, volumes, write_nifti
from PIL import Image

from ssl3d.data.layouts import download_msd, open_cohort
from ssl3d.data.prepare import prepare
from ssl3d.data.scans import read_scan, resize, scale
from ssl3d.errors import InputError

pytestmark = pytest.mark.quick


def brats(folder, name, sep, parts, codes=(0, 1, 2, 3)):
    volumes(folder, *[f"{name}/{name}{sep}{p}" for p in parts], mask=[f"{name}/{name}{sep}seg"], codes=codes)


OLD, NEW = ("t1", "t1ce", "t2", "flair"), ("t1n", "t1c", "t2w", "t2f")


def test_brats_of_all_years(tmp_path):
    brats(tmp_path / "HGG", "Brats18_2013_2_1", "_", OLD, codes=(0, 1, 2, 4))
    brats(tmp_path / "HGG", "Brats18_2013_2_2", "_", OLD, codes=(0, 1, 2, 4))
    brats(tmp_path, "BraTS2021_00006", "_", OLD, codes=(0, 1, 2, 4))
    brats(tmp_path, "BraTS-GLI-00000-000", "-", NEW)
    brats(tmp_path, "BraTS-GLI-00000-001", "-", NEW)
    cohort = open_cohort(tmp_path)
    assert cohort.layout == "brats" and cohort.channels == ("t1n", "t1c", "t2w", "t2f") and len(cohort) == 5
    assert sorted({c.subject for c in cohort.cases}) == ["BraTS-GLI-00000", "BraTS2021_00006", "Brats18_2013_2"]
    assert all([f.name.split(".")[0][-2:] for f in c.images][2] in ("t2", "2w") for c in cohort.cases)
    store = prepare(cohort, tmp_path.parent / f"{tmp_path.name}-store", size=8, progress=False)
    assert store.channels == 4 and all(case["classes"] == [0, 1, 2, 3] for case in store.cases.values())


def test_codes_that_contradict_each_other(tmp_path):
    brats(tmp_path / "in", "BraTS2021_00006", "_", OLD, codes=(0, 1, 2, 3, 4))
    brats(tmp_path / "in", "BraTS2021_00007", "_", OLD, codes=(0, 1, 2, 4))
    with pytest.raises(InputError, match="BraTS2021_00006_seg.*stands for 3, and 3 itself"):
        prepare(tmp_path / "in", tmp_path / "out", size=8, progress=False)


def test_modalities_are_chosen_in_order(tmp_path):
    brats(tmp_path / "in", "BraTS-GLI-00001-000", "-", NEW)
    brats(tmp_path / "in", "BraTS-GLI-00002-000", "-", NEW[:2])
    brats(tmp_path / "in", "BraTS-GLI-00003-000", "-", NEW)
    assert "t2w (2 cases)" in str(open_cohort(tmp_path / "in"))
    with pytest.raises(InputError, match="00002-000.*no t2w, t2f"):
        prepare(tmp_path / "in", tmp_path / "all", size=8, progress=False)
    skipped = prepare(tmp_path / "in", tmp_path / "all", size=8, on_error="skip", progress=False)
    assert len(skipped) == 2 and skipped.channels == 4 and "00002-000" in skipped.left_out[0]["problem"]
    for order in (("t1c", "t1n"), ("t1n", "t1c")):
        pair = open_cohort(tmp_path / "in", modalities=order)
        store = prepare(pair, tmp_path / order[0], size=8, progress=False)
        assert len(store) == 3 and store.channel_names == list(order)
        first = store.cases["BraTS-GLI-00001-000"]["files"]
        assert [f.split("-")[-1] for f in first] == [f"{m}.nii.gz" for m in order]
        for channel, file in enumerate(first):
            assert np.allclose(
                store.image("BraTS-GLI-00001-000")[channel], scale(resize(read_scan(file), (8,) * 3))[0], atol=1e-3
            )
    with pytest.raises(InputError, match="no separate files for 'dwi'"):
        open_cohort(tmp_path / "in", modalities=("dwi",))


def test_uk_biobank(tmp_path):
    for eid in ("1000015", "1000027"):
        volumes(
            tmp_path,
            f"{eid}_20252_2_0/T1/T1",
            f"{eid}_20252_2_0/T1/T1_brain",
            f"{eid}_20253_2_0/T2_FLAIR/T2_FLAIR_brain",
            mask=[f"{eid}_20252_2_0/T1/T1_fast/T1_brain_seg"],
            codes=(0, 1, 2, 3),
        )
    volumes(tmp_path, "1000015_20252_3_0/T1/T1_brain", "1000015_20253_3_0/T2_FLAIR/T2_FLAIR_brain")
    cohort = open_cohort(tmp_path)
    assert cohort.layout == "ukb" and [c.id for c in cohort.cases] == ["1000015-2", "1000015-3", "1000027-2"]
    assert cohort.cases[0].subject == cohort.cases[1].subject != cohort.cases[2].subject
    assert all(f.name.endswith("_brain.nii.gz") for c in cohort.cases for f in c.images)
    assert prepare(cohort, tmp_path.parent / f"{tmp_path.name}-store", size=8, progress=False).channels == 2


def test_ixi_with_its_table(tmp_path):
    volumes(tmp_path, "IXI-T1/IXI002-Guys-0828-T1", "IXI-T1/IXI012-HH-1211-T1", "IXI-T2/IXI012-HH-1211-T2")
    (tmp_path / "IXI.csv").write_text('IXI_ID,"SEX_ID (1=m, 2=f)",HEIGHT,AGE\n2,2,164,35.8\n12,1,175,38.78\n')
    cohort = open_cohort(tmp_path, modalities=("T1",))
    assert cohort.layout == "ixi" and len(cohort) == 2
    assert [(c.id, c.subject, c.sex, c.age) for c in cohort.cases] == [
        ("IXI002-Guys-0828", "IXI002", "F", 35.8),
        ("IXI012-HH-1211", "IXI012", "M", 38.78),
    ]


def test_bids_with_sessions_runs_and_derivatives(tmp_path):
    volumes(
        tmp_path,
        "sub-01/ses-a/anat/sub-01_ses-a_T1w",
        "sub-01/ses-b/anat/sub-01_ses-b_T1w",
        "sub-02/anat/sub-02_run-1_T1w",
        "sub-02/anat/sub-02_run-2_T1w",
        "sub-02/func/sub-02_task-rest_bold",
        "derivatives/prep/sub-02/anat/sub-02_run-1_desc-preproc_T1w",
        mask=[
            "derivatives/prep/sub-01/ses-a/anat/sub-01_ses-a_space-MNI_dseg",
            "derivatives/prep/sub-01/ses-a/anat/sub-01_ses-a_desc-brain_mask",
            "derivatives/hand/sub-01/ses-a/anat/sub-01_ses-a_label-lesion_mask",
            "derivatives/hand/sub-01/ses-b/anat/sub-01_ses-b_label-lesion_mask",
        ],
    )
    (tmp_path / "participants.tsv").write_text("participant_id\tage\tsex\nsub-01\t33\tM\nsub-02\tn/a\tF\n")
    cohort = open_cohort(tmp_path)
    assert cohort.layout == "bids" and cohort.channels == ("T1w",)
    assert [c.id for c in cohort.cases] == ["sub-01_ses-a", "sub-01_ses-b", "sub-02_run-1", "sub-02_run-2"]
    assert [c.mask and c.mask.parts[-5 if "ses" in c.id else -4] for c in cohort.cases] == ["hand", "hand", None, None]
    assert [(c.age, c.sex) for c in cohort.cases] == [(33, "M"), (33, "M"), (None, "F"), (None, "F")]


def photographs(folder, *names):
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        Image.fromarray(RNG.integers(0, 255, (20, 30, 3), dtype=np.uint8)).save(folder / name)


def test_aptos_and_idrid(tmp_path):
    photographs(tmp_path / "aptos/train_images", "000c1434d8d7.png", "001639a390f0.png", "0024cdab0c1e.png")
    photographs(tmp_path / "aptos/test_images", "0005cfc8afb6.png")
    (tmp_path / "aptos/train.csv").write_text("id_code,diagnosis\n000c1434d8d7,2\n001639a390f0,4\n0024cdab0c1e,1\n")
    (tmp_path / "aptos/test.csv").write_text("id_code\n0005cfc8afb6\n")
    cohort = open_cohort(tmp_path / "aptos")
    assert cohort.layout == "aptos" and [c.grade for c in cohort.cases] == [None, 2, 4, 1]
    grading = tmp_path / "B. Disease Grading"
    for part, letter, grade in (("Training", "a", 3), ("Testing", "b", 0)):
        photographs(grading / "1. Original Images" / f"{letter}. {part} Set", "IDRiD_001.jpg", "IDRiD_002.jpg")
        table = grading / "2. Groundtruths" / f"{letter}. IDRiD_Disease Grading_{part} Labels.csv"
        table.parent.mkdir(exist_ok=True)
        table.write_text(
            f"Image name,Retinopathy grade,Risk of macular edema ,,\nIDRiD_001,{grade},2,,\n"
            f"IDRiD_002,{grade},0,,\n,,,,\n"
        )
    for place in (grading, tmp_path):
        cohort = open_cohort(place, layout="idrid")
        assert [(c.id, c.grade) for c in cohort.cases] == [
            ("test-IDRiD_001", 0),
            ("test-IDRiD_002", 0),
            ("train-IDRiD_001", 3),
            ("train-IDRiD_002", 3),
        ]
    (tmp_path / "aptos/train.csv").write_text("id_code,diagnosis\nffffffffffff,2\n000c1434d8d7,2\n")
    with pytest.raises(InputError, match="ffffffffffff.*no such file"):
        open_cohort(tmp_path / "aptos")


def test_patterns_and_a_table(tmp_path):
    for person in ("anna", "bert"):
        for visit in "12":
            volumes(tmp_path, f"{person}_{visit}_T1", mask=[f"seg/{person}_{visit}"])
    (tmp_path / "people.tsv").write_text("name\tage\tgender\tgrade\nanna\t61\tfemale\t2\nbert\t47\tmale\t0\n")
    cohort = open_cohort(
        tmp_path, images="{subject}_{session}_T1.nii*", masks="seg/{subject}_{session}.nii*", table="people.tsv"
    )
    assert [(c.id, c.subject, c.grade, c.age, c.sex) for c in cohort.cases] == [
        ("anna-1", "anna", 2, 61, "F"),
        ("anna-2", "anna", 2, 61, "F"),
        ("bert-1", "bert", 0, 47, "M"),
        ("bert-2", "bert", 0, 47, "M"),
    ]
    assert all(c.mask for c in cohort.cases)
    (tmp_path / "others.csv").write_text("name,age\ncarl,3\n")
    for wrong, said in (
        (dict(images="T1.nii"), "names a case"),
        (dict(images="{name}.nii"), "not known"),
        (dict(images="x/{id}.nii"), "no file for images"),
        (dict(masks="{id}.nii"), "images"),
        (dict(images="{id}_T1.nii.gz", masks="{id}_seg.nii.gz"), "no file for masks"),
        (dict(images="{subject}_*.nii.gz"), "fits"),
        (dict(layout="nifti"), "one of msd, nnunet, brats, ukb"),
        (dict(images="{id}_T1.nii.gz", table="others.csv"), "no column with the ids"),
        (dict(images="{id}_T1.nii.gz", table="none.csv"), "none.csv"),
        (dict(on_error="go"), "on_error"),
    ):
        with pytest.raises(InputError, match=said):
            open_cohort(tmp_path, **wrong)


def test_a_csv_with_columns_of_other_names_and_several_modalities(tmp_path):
    volumes(tmp_path, "a/t1", "a/flair", "b/t1", "b/flair")
    (tmp_path / "t.csv").write_text(
        "image_t1,image_flair,dr_grade,Person\na/t1.nii.gz,a/flair.nii.gz,3,A\nb/t1.nii.gz,b/flair.nii.gz,,B\n"
    )
    cohort = open_cohort(tmp_path / "t.csv", columns={"grade": "dr_grade", "subject": "person"})
    assert cohort.channels == ("t1", "flair")
    assert [(c.id, c.grade, c.subject, len(c.images)) for c in cohort.cases] == [
        ("a-t1", 3, "A", 2),
        ("b-t1", None, "B", 2),
    ]
    with pytest.raises(InputError, match="'points' for 'grade'.*dr_grade"):
        open_cohort(tmp_path / "t.csv", columns={"grade": "points"})


def test_a_decathlon_task_is_fetched(tmp_path, monkeypatch):
    from monai.apps import DecathlonDataset

    task = volumes(tmp_path / "Task04_Hippocampus", "imagesTr/a", "imagesTr/b", mask=["labelsTr/a", "labelsTr/b"])
    pairs = [{"image": f"./imagesTr/{n}.nii.gz", "label": f"./labelsTr/{n}.nii.gz"} for n in "ab"]
    (task / "dataset.json").write_text(json.dumps({"training": pairs}))
    with tarfile.open(tmp_path / "Task04_Hippocampus.tar", "w") as tar:
        tar.add(task, "Task04_Hippocampus")
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(SimpleHTTPRequestHandler, directory=tmp_path))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    here = f"http://127.0.0.1:{server.server_port}"
    monkeypatch.setitem(DecathlonDataset.resource, task.name, f"{here}/Task04_Hippocampus.tar")
    monkeypatch.setitem(DecathlonDataset.md5, task.name, None)
    assert len(open_cohort(download_msd(task.name, tmp_path / "here", progress=False))) == 2
    with pytest.raises(InputError, match="no task of the Decathlon"):
        download_msd("Task99", tmp_path)
    monkeypatch.setitem(DecathlonDataset.resource, task.name, f"{here}/gone.tar")
    with pytest.raises(InputError, match="Is there a network"):
        download_msd(task.name, tmp_path / "there", progress=False)
    server.shutdown()


def people_folder(folder):
    return volumes(folder, "001_a", "001_b", "002_a", "003_a")


@pytest.mark.parametrize(
    "table, columns, said",
    [
        ("No,Patient,Grade\n1,003,0\n2,001,1\n3,002,2\n", None, "equally well"),
        ("Patient,Grade\n001,0\n001,1\n002,2\n", None, "several rows for '001' that differ"),
        ("Patient,Grade\n001,HGG\n", None, "grade 'HGG'"),
        ("Patient,Age\n001,forty\n", {"age": "Age"}, "age 'forty'"),
        ("Patient,Grade\n001,-1\n", None, "grade '-1'"),
        ("Patient,Sex\n001,x\n", {"sex": "Sex"}, "sex 'x'"),
        ("Patient,Grade\n001,1\n", {"id": "Name"}, "'Name' for 'id'"),
    ],
)
def test_a_table_is_never_guessed_at(tmp_path, table, columns, said):
    people_folder(tmp_path)
    (tmp_path / "people.csv").write_text(table)
    with pytest.raises(InputError, match=f"people.csv.*{said}"):
        open_cohort(tmp_path, images="{subject}_{session}.nii.gz", table="people.csv", columns=columns)


def test_a_table_as_excel_writes_it(tmp_path):
    people_folder(tmp_path)
    table = "sep=;\nNo;Patient;Age;Sex;Who\n1;1;41,5;w;A\n2;2;n/a;m;B\n3;3;60;;A\n"
    (tmp_path / "people.csv").write_text(table, encoding="utf-8-sig")
    columns = {"id": "patient", "subject": "Who"}
    cohort = open_cohort(tmp_path, images="{subject}_{session}.nii.gz", table="people.csv", columns=columns)
    assert [(c.id, c.age, c.sex, c.subject) for c in cohort.cases] == [
        ("001-a", 41.5, "F", "A"),
        ("001-b", 41.5, "F", "A"),
        ("002-a", None, "M", "B"),
        ("003-a", 60, None, "A"),
    ]
    assert "sex:      F: 2, M: 1 (known for 3 of 4)" in str(cohort)
    (tmp_path / "old.csv").write_bytes("Patient;Ort\n1;Köln\n".encode("cp1252"))
    with pytest.raises(InputError, match="old.csv.*CSV UTF-8"):
        open_cohort(tmp_path, images="{subject}_{session}.nii.gz", table="old.csv")


def test_what_a_plain_folder_would_pass_over_in_silence(tmp_path):
    volumes(tmp_path, "p1/t1", "p2/t1", mask=["p1/lesion_mask", "p2/seg"])
    (tmp_path / "p3.mnc").touch()
    cohort = open_cohort(tmp_path, on_error="skip")
    assert [c.id for c in cohort.cases] == ["p1-t1", "p2-t1"] and len(cohort.left_out) == 1
    assert "2 files look like label maps of 2 scans, of 2 kinds; none is used" in str(cohort)
    assert "5 seen, 2 used, 3 left out" in str(cohort)
    with pytest.raises(InputError, match="p3.mnc: is of a kind that is not read. .*mnc2nii"):
        open_cohort(tmp_path)


def test_bids_does_not_choose_for_the_user(tmp_path):
    volumes(
        tmp_path,
        "sub-1/anat/sub-1_acq-ax_T1w",
        "sub-1/anat/sub-1_acq-sag_T1w",
        "sub-2/anat/sub-2_acq-ax_T1w",
        mask=["derivatives/a/sub-1/anat/sub-1_dseg", "derivatives/b/sub-1/anat/sub-1_label-lesion_mask"],
    )
    cohort = open_cohort(tmp_path, on_error="skip", modalities="acq-ax_T1w")
    assert len(cohort) == 2 and all(c.modalities == ("acq-ax_T1w",) and c.mask is None for c in cohort.cases)
    with pytest.raises(InputError, match="masks of 2 kinds"):
        open_cohort(tmp_path)


def test_uk_biobank_without_a_brain(tmp_path):
    volumes(tmp_path, "1/T1/T1", "1/T1/T1_brain", "2/T1/T1")
    with pytest.raises(InputError, match="2/T1/T1.nii.gz: has no T1_brain"):
        open_cohort(tmp_path)
    (tmp_path / "1/T1/T1_brain.nii.gz").unlink()
    assert len(open_cohort(tmp_path)) == 2


def test_a_mask_is_no_second_scan(tmp_path):
    volumes(tmp_path, "a", "b", mask=["a_seg", "b_seg"])
    cohort = open_cohort(tmp_path, images="{id}.nii.gz", masks="{id}_seg.nii.gz")
    assert [c.id for c in cohort.cases] == ["a", "b"] and all(c.mask for c in cohort.cases)


def test_samples_are_a_decathlon_task():
    cohort = open_cohort(SAMPLES)
    assert cohort.layout == "msd" and len(cohort) == 32 and len(cohort.channels) == 4 and len(cohort.classes) == 4


def test_unlabelled_images_of_a_task_are_cases(tmp_path):
    msd(tmp_path)
    write_nifti(tmp_path / "imagesTr/extra.nii.gz", RNG.random((8, 9, 10)))
    msd(tmp_path, test=["./imagesTr/extra.nii.gz"])
    assert [c.mask is None for c in open_cohort(tmp_path).cases] == [False, False, False, True]


@pytest.mark.parametrize(
    "index, said",
    [
        ("{", "dataset.json"),
        ("[]", "dataset.json"),
        ('{"training": [1]}', "training"),
        ('{"training": []}', "no scan"),
        ('{"training": [{"image": "x.nii", "label": "y.nii"}]}', "x.nii"),
    ],
)
def test_a_broken_index_is_named(tmp_path, index, said):
    (tmp_path / "dataset.json").write_text(index)
    with pytest.raises(InputError, match=said):
        open_cohort(tmp_path)


def test_missing_and_empty_folders(tmp_path):
    with pytest.raises(InputError, match="no such"):
        open_cohort(tmp_path / "nowhere")
    with pytest.raises(InputError, match="holds no scan"):
        open_cohort(tmp_path)
    with pytest.raises(InputError, match="one of msd, nnunet, brats, ukb"):
        open_cohort(tmp_path, layout="nifti")


def test_two_cases_of_one_name_are_refused(tmp_path):
    write_nifti(tmp_path / "a.nii", RNG.random((4, 4, 4)))
    np.save(tmp_path / "a.npy", RNG.random((4, 4, 4)))
    with pytest.raises(InputError, match="'a'"):
        open_cohort(tmp_path)


def test_csv_with_stray_spaces_masks_and_subjects(tmp_path):
    for i in range(3):
        write_nifti(tmp_path / f"s{i}.nii.gz", RNG.random((6, 6, 6)))
        write_nifti(tmp_path / f"m{i}.nii.gz", np.eye(6, dtype=np.uint8)[..., None].repeat(6, 2))
    (tmp_path / "t.csv").write_text(
        " Image , mask,subject,site\n" + "".join(f" s{i}.nii.gz, m{i}.nii.gz ,p{i // 2}, x\n" for i in range(3))
    )
    cohort = open_cohort(tmp_path / "t.csv")
    assert [(c.id, c.subject, c.mask.name) for c in cohort.cases] == [
        ("s0", "p0", "m0.nii.gz"),
        ("s1", "p0", "m1.nii.gz"),
        ("s2", "p1", "m2.nii.gz"),
    ]
    (tmp_path / "bad.csv").write_text("file,label\ns0.nii.gz,1\n")
    with pytest.raises(InputError, match="no column 'image'"):
        open_cohort(tmp_path / "bad.csv")


def test_csv_names_and_grades(tmp_path):
    for folder in ("sub1", "sub2"):
        (tmp_path / folder).mkdir()
        write_nifti(tmp_path / folder / "T1.nii", RNG.random((4, 4, 4)))
    (tmp_path / "t.csv").write_text("image,label\nsub1/T1.nii,1.0\nsub2/T1.nii,\n")
    assert [(c.id, c.grade, c.mask) for c in open_cohort(tmp_path / "t.csv").cases] == [
        ("sub1-T1", 1, None),
        ("sub2-T1", None, None),
    ]
    for layout in ("msd", "csv", "medmnist"):
        with pytest.raises(InputError, match=layout):
            open_cohort(tmp_path / "sub1", layout=layout)


def raw(folder, **changes):
    """A small dataset of nnU-Net, version 2, with two channels."""
    for i in range(3):
        volumes(folder, f"imagesTr/X_{i:03d}_0000", f"imagesTr/X_{i:03d}_0001", mask=[f"labelsTr/X_{i:03d}"])
    volumes(folder, "imagesTs/X_009_0000", "imagesTs/X_009_0001")
    info = {"channel_names": {"0": "T1", "1": "T2"}, "labels": {"background": 0, "a": 1, "b": 2}, "numTraining": 3,
            "file_ending": ".nii.gz"}
    (folder / "dataset.json").write_text(json.dumps(info | changes), encoding="utf-8-sig")
    return folder


def test_nnunet_of_both_versions(tmp_path):
    cohort = open_cohort(raw(tmp_path / "v2"))
    assert cohort.layout == "nnunet" and cohort.channels == ("T1", "T2") and cohort.classes == {
        0: "background", 1: "a", 2: "b"}
    assert [(c.id, len(c.images), c.mask is not None) for c in cohort.cases] == [
        ("X_000", 2, True), ("X_001", 2, True), ("X_002", 2, True), ("X_009", 2, False)]
    store = prepare(cohort, tmp_path / "store", size=8, progress=False)
    assert store.channel_names == ["T1", "T2"] and store.classes[2] == "b"
    assert open_cohort(tmp_path / "v2", modalities="T2").cases[0].images[0].name == "X_000_0001.nii.gz"
    msd(tmp_path / "v1")
    for file in (tmp_path / "v1/imagesTr").iterdir():
        file.rename(file.with_name(file.name.replace(".nii", "_0000.nii")))
    assert [c.images[0].name for c in open_cohort(tmp_path / "v1").cases] == [f"c{i}_0000.nii.gz" for i in range(3)]


def test_nnunet_says_what_it_cannot_use(tmp_path):
    cohort = open_cohort(raw(tmp_path / "regions", labels={"background": 0, "whole": [1, 2], "core": [2]}))
    assert cohort.classes == {0: "background", 1: "whole", 2: "whole + core"}
    for changes, said in (({"labels": {"background": 0, "a": 1, "ignore": 2}}, "'ignore'.*--images"),
                          ({"numTraining": 7}, "says numTraining 7, but imagesTr has 3"),
                          ({"labels": {"background": "zero"}}, "index of nnU-Net")):
        with pytest.raises(InputError, match=said):
            open_cohort(raw(tmp_path / said[:5].strip("'"), **changes))
    (raw(tmp_path / "gap") / "imagesTr/X_001_0001.nii.gz").unlink()
    with pytest.raises(InputError, match="X_001_0001.nii.gz: is named for case 'X_001'"):
        open_cohort(tmp_path / "gap")
    listed = {"X": {"images": ["imagesTr/X_000_0001.nii.gz", "imagesTr/X_000_0000.nii.gz"],
                    "label": "labelsTr/X_000.nii.gz"}}
    (case,) = open_cohort(raw(tmp_path / "listed", dataset=listed)).cases
    assert [f.name for f in case.images] == ["X_000_0001.nii.gz", "X_000_0000.nii.gz"] and case.mask


BIDS = {  # name of the subject, its scan, its mask
    "in the scan's folder": ("sub-r00{i}", "ses-1/anat/{s}_ses-1_space-MNI152_T1w",
                             "{s}/ses-1/anat/{s}_ses-1_space-MNI152_label-L_desc-T1lesion_mask"),
    "the scan's suffix inside": ("sub-a{i}", "anat/{s}_T2w", "derivatives/labels/{s}/anat/{s}_T2w_label-rootlets_dseg"),
    "seg": ("sub-a{i}", "anat/{s}_T2w", "derivatives/labels/{s}/anat/{s}_label-SC_seg"),
    "msk, no anat": ("sub-s{i}", "ses-0001/anat/{s}_ses-0001_FLAIR", "derivatives/{s}/ses-0001/{s}_ses-0001_msk"),
    "brainstem": ("sub-0{i}", "anat/{s}_T1w", "derivatives/man/{s}/anat/{s}_label-brainstem_mask"),
    "people called brain": ("sub-brain{i}", "anat/{s}_T1w", "derivatives/man/{s}/anat/{s}_dseg"),
    "a run on the scan alone": ("sub-0{i}", "anat/{s}_run-1_T1w", "derivatives/man/{s}/anat/{s}_dseg"),
    "a run on the mask alone": ("sub-0{i}", "anat/{s}_T1w", "derivatives/man/{s}/anat/{s}_run-1_dseg"),
    "no session on the mask": ("sub-0{i}", "ses-a/anat/{s}_ses-a_T1w", "lesions/{s}/anat/{s}_roi"),
    "raw data below": ("sub-0{i}", "anat/{s}_T1w", "derivatives/x/{s}/anat/{s}_lesion"),
}


@pytest.mark.parametrize("name", BIDS)
def test_bids_masks_under_the_names_that_people_give_them(tmp_path, name):
    person, scan, label = BIDS[name]
    for i in range(3):
        s = person.format(i=i)
        where = "rawdata/" if name == "raw data below" else ""
        volumes(tmp_path, f"{where}{s}/{scan.format(s=s)}", mask=[label.format(s=s)])
    cohort = open_cohort(tmp_path)
    assert cohort.layout == "bids" and len(cohort) == 3 and not cohort.left_out
    assert all(c.mask and c.subject in c.mask.as_posix() for c in cohort.cases)


def test_bids_masks_of_whole_brains_and_of_templates_are_left_out_by_name(tmp_path):
    for i in range(3):
        s = f"sub-0{i}"
        volumes(tmp_path, f"{s}/anat/{s}_T1w", mask=[f"derivatives/f/{s}/anat/{s}_desc-brain_mask",
                                                     f"derivatives/f/{s}/anat/{s}_space-MNI_dseg"])
    cohort = open_cohort(tmp_path)
    assert not any(c.mask for c in cohort.cases) and "9 seen, 3 used, 6 left out" in str(cohort)
    assert "3 masks in another space, as derivatives/f/sub-00/anat/sub-00_space-MNI_dseg.nii.gz" in str(cohort)


def test_bids_runs_are_chosen_by_rule_and_told(tmp_path):
    for i in range(4):
        for run in ("run-2_", "run-1_") if i == 0 else ("",):
            volumes(tmp_path, f"sub-0{i}/anat/sub-0{i}_{run}T1w")
        volumes(tmp_path, f"sub-0{i}/anat/sub-0{i}_FLAIR")
    cohort = open_cohort(tmp_path)
    assert [c.id for c in cohort.cases] == [f"sub-0{i}" for i in range(4)] and not cohort.left_out
    assert [f.name for f in cohort.cases[0].images] == ["sub-00_run-1_T1w.nii.gz", "sub-00_FLAIR.nii.gz"]
    assert "first run of each modality is taken" in str(cohort) and "sub-00_run-2_T1w.nii.gz" in str(cohort)
    assert len(prepare(cohort, tmp_path.parent / f"{tmp_path.name}-s", size=8, progress=False).subjects) == 4


@pytest.mark.parametrize("name, codes, said", [
    ("BraTS-GLI-00005-100", (0, 1, 2, 4), {1: "necrotic core", 2: "oedema", 4: "resection cavity"}),
    ("BraTS-GLI-00005-000", (0, 1, 2, 3), {1: "necrotic core", 2: "oedema", 3: "enhancing tumour"}),
    ("BraTS2021_00005", (0, 1, 2, 4), {1: "necrotic core", 2: "oedema", 3: "enhancing tumour"}),
    ("BraTS-PED-00005-000", (0, 1, 2, 4), {1: "class 1", 2: "class 2", 4: "class 4"}),
])  # fmt: skip
def test_codes_of_brats_go_by_year(tmp_path, name, codes, said):
    old = "_" in name
    for i in range(2):
        person = name.replace("00005", f"0000{i}")
        brats(tmp_path / "in", person, "_" if old else "-", OLD if old else NEW, codes=codes)
    store = prepare(tmp_path / "in", tmp_path / "store", size=8, progress=False)
    for case in store.cases.values():
        assert {store.classes[code] for code in case["classes"] if code} == {*said.values()}


def test_both_conventions_of_brats_in_one_folder(tmp_path):
    brats(tmp_path / "in", "BraTS2021_00006", "_", OLD, codes=(0, 1, 2, 4))
    brats(tmp_path / "in", "BraTS-GLI-00007-101", "-", NEW, codes=(0, 1, 2, 4))
    store = prepare(tmp_path / "in", tmp_path / "store", size=8, progress=False)
    assert store.cases["BraTS2021_00006"]["classes"] == [0, 1, 2, 3]
    assert store.cases["BraTS-GLI-00007-101"]["classes"] == [0, 1, 2, 4]


def test_a_brats_mask_under_another_name_is_pointed_out(tmp_path):
    brats(tmp_path, "BraTS20_Training_354", "_", OLD, codes=(0, 1, 2, 4))
    brats(tmp_path, "BraTS20_Training_355", "_", OLD, codes=(0, 1, 2, 4))
    (tmp_path / "BraTS20_Training_355/BraTS20_Training_355_seg.nii.gz").rename(
        tmp_path / "BraTS20_Training_355/W39_1998.09.19_Segm.nii.gz")
    with pytest.raises(InputError, match="W39.*_Segm.nii.gz: looks like the mask of case 'BraTS20_Training_355'"):
        open_cohort(tmp_path)
    assert len(open_cohort(tmp_path, on_error="skip")) == 2


def test_ixi_unpacked_and_with_people_twice_in_its_table(tmp_path):
    for i in (12, 13):
        for m in ("T1", "T2"):
            volumes(tmp_path, f"IXI{i:03d}-HH-12{i}-{m}")
            (tmp_path / f"IXI{i:03d}-HH-12{i}-{m}.nii").write_bytes(
                gzip.decompress((tmp_path / f"IXI{i:03d}-HH-12{i}-{m}.nii.gz").read_bytes()))
            (tmp_path / f"IXI{i:03d}-HH-12{i}-{m}.nii.gz").unlink()
    cohort = open_cohort(tmp_path)
    assert cohort.layout == "ixi" and [c.subject for c in cohort.cases] == ["IXI012", "IXI013"]
    table = 'IXI_ID,"SEX_ID (1=m, 2=f)",AGE\n12,2,38.8\n12,2,55.1\n13,1,46.7\n'
    (tmp_path / "IXI.csv").write_text(table)
    with pytest.raises(InputError, match="IXI.csv: has several rows for '12' that differ"):
        open_cohort(tmp_path)
    assert [c.age for c in open_cohort(tmp_path, on_error="skip").cases] == [None, 46.7], "no age is taken for him"
    (tmp_path / "IXI.csv").write_text(table.replace("12,2,55.1", "12,2,38.8"))
    assert [c.age for c in open_cohort(tmp_path).cases] == [38.8, 46.7], "rows that agree are one"


def test_hidden_files_of_other_systems_are_not_read(tmp_path):
    rubbish = b"\0\5\x16\7\0\2\0\0Mac OS X" + b"\0" * 60
    (tmp_path / "n").mkdir()
    pictures = RNG.integers(0, 255, (6, 28, 28), dtype=np.uint8)
    np.savez(tmp_path / "n/x.npz", **{f"{p}_images": pictures for p in ("train", "val", "test")},
             **{f"{p}_labels": np.array([[0], [1]] * 3) for p in ("train", "val", "test")})
    photographs(tmp_path / "i/1. Original Images/a. Training Set", "IDRiD_1.jpg", "IDRiD_2.jpg")
    (tmp_path / "i/2. Groundtruths").mkdir()
    table = tmp_path / "i/2. Groundtruths/a. IDRiD_Disease Grading_Training Labels.csv"
    table.write_text("Image name,Retinopathy grade\nIDRiD_1,1\nIDRiD_2,2\n")
    for place in ("n/._x.npz", "i/2. Groundtruths/._a. IDRiD_Disease Grading_Training Labels.csv",
                  "i/1. Original Images/._a. Training Set", "i/.DS_Store"):
        (tmp_path / place).write_bytes(rubbish)
    assert len(open_cohort(tmp_path / "n")) == 18 and len(open_cohort(tmp_path / "i")) == 2


def test_an_archive_of_features_makes_no_folder_medmnist(tmp_path):
    volumes(tmp_path, "a", "b")
    np.savez(tmp_path / "features.npz", x=np.zeros(3))
    assert open_cohort(tmp_path).layout == "folder"
    (tmp_path / "a.nii.gz").unlink(), (tmp_path / "b.nii.gz").unlink()
    with pytest.raises(InputError, match="features.npz"):
        open_cohort(tmp_path)


def test_an_index_saved_by_notepad(tmp_path):
    msd(tmp_path)
    (tmp_path / "dataset.json").write_bytes(b"\xef\xbb\xbf" + (tmp_path / "dataset.json").read_bytes())
    assert len(open_cohort(tmp_path)) == 3


def test_real_folders_open_without_any_pattern(real_data):
    """What the notebook's table says of every folder of real scans."""
    said = {"Task04_Hippocampus": ("msd", 223, 223), "adrenalmnist3d": ("medmnist", 1584, 0),
            "brats_mini_2mm": ("brats", 8, 8), "idrid_grading_512": ("folder", 413, 0),
            "ixi_t1_brain_2mm": ("folder", 159, 0), "ixi_t1_head_2mm_10": ("folder", 10, 10),
            "retinamnist": ("medmnist", 1600, 0), "totalsegmentator_ct": ("folder", 3, 1)}
    for name, facts in said.items():
        cohort = open_cohort(real_data / name)
        assert (cohort.layout, len(cohort), sum(c.mask is not None for c in cohort.cases)) == facts
        assert len({c.subject for c in cohort.cases}) == len(cohort), "one scan of each person"
    with pytest.raises(InputError, match="all 20 files look like label maps"):
        open_cohort(real_data / "synthseg_labelmaps_2mm")
