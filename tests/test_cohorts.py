"""Who is who, what a table says, and which series is which: where nothing but names and headers tells it."""

import unicodedata
from pathlib import Path

import numpy as np
import pydicom
import pytest
from conftest import volumes, write_nifti
from PIL import Image
from pydicom.dataset import FileMetaDataset
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, generate_uid

import ssl3d
from ssl3d.data.cohorts import people_of
from ssl3d.data.layouts import open_cohort
from ssl3d.data.prepare import prepare
from ssl3d.errors import InputError

pytestmark = pytest.mark.quick


@pytest.mark.parametrize(
    "names, people",
    [
        ("anna/CBF anna/CBV anna/MTT anna/TTP anna/a anna/b anna/c anna/d anna/e anna/f bert/a", "anna " * 10 + "bert"),
        ("P1/IM0001 P1/IM0002 P2/IM0001", "P1 P1 P2"),
        ("arterial/P07 venous/P07 arterial/P08 venous/P08", "P07 P07 P08 P08"),
        ("GE/001 Siemens/001 GE/002 Siemens/002", "001 001 002 002"),
        ("0001L 0001R 0002L", "0001 0001 0002"),
        ("P01a P01b P02a", "P01 P01 P02"),
        ("001BL 001FU 002BL", "001 001 002"),
        ("31.01.2020/P1 01.02.2021/P1 31.01.2020/P2", "P1 P1 P2"),
        ("SMITH_01-02-2020 SMITH_03-04-2021 JONES_01-02-2020", "SMITH SMITH JONES"),
        ("P01_Baseline p01_followup P1_late P02_Baseline", "P01 P01 P01 P02"),
        ("001_20200101 001_20210101 002_20200101", "001 001 002"),
        ("ab_1 ab_2 bc_1 bc_2 ce_1 de_1 ef_1", "ab ab bc bc ce de ef"),
        ("P01_visit1 P01_visit2 P02_visit1", "P01 P01 P02"),
        ("P01/a P01/b P02/a", "P01 P01 P02"),
        ("anna/x anna/y bert/x", "anna anna bert"),
        ("anna/1/T1 anna/2/T1 bert/1/T1", "anna anna bert"),
        ("T1/anna T2/anna T1/bert", "anna anna bert"),
        ("baseline/001 followup/001 baseline/002", "001 001 002"),
        ("001_1 001_2 002_1", "001 001 002"),
        ("IXI012-HH-1211-T1 IXI012-HH-1211-T2 IXI013-HH-1212-T1", "IXI012 IXI012 IXI013"),
        ("eye_17_left eye_17_right eye_18_left", "eye-17 eye-17 eye-18"),
        ("P1/2020-01-31/ct P1/2021-03-01/ct P2/2020-01-31/ct", "P1 P1 P2"),
        ("sub-01_ses-02_T1w sub-02_ses-01_T1w sub-01_ses-01_T1w", "sub-01 sub-02 sub-01"),
        ("case_0007_0000 case_0007_0001 case_0008_0000", "case-0007 case-0007 case-0008"),
    ],
)
def test_two_scans_of_a_person_are_one_person(names, people):
    assert people_of([Path(f"{name}.nii.gz") for name in names.split()])[0] == people.split()


@pytest.mark.parametrize("names", [
    "scan_001 scan_002 scan_003", "a0 a1 a2",
    "IXI012-T1 IXI102-T1 IXI1002-T1", "p_010 p_100 p_1000", "P1 P10 P100",
    "train_1 train_2 test_1", "healthy/1 healthy/2 sick/1 sick/2",
    "hippocampus_001 hippocampus_003 hippocampus_004", "v1 v2 v3", "imagesTr/x1 imagesTr/x2 imagesTs/x3",
    "002_S_0295 002_S_0413 003_S_0001", "TCGA-02-0003 TCGA-02-0006", "site1/P1 site1/P2 site2/P3", "img_12 img_13",
    "fold0/a fold0/b fold1/c", "2020_1 2020_2 2021_1", "T1_007 T1_008", "ds1/sub-01/a ds1/sub-02/a ds2/sub-01/a",
    "t1 t2 t3", "s0001/ct s0002/ct",
])  # fmt: skip
def test_other_people_stay_other_people(names):
    found = people_of([Path(f"{name}.nii.gz") for name in names.split()])[0]
    assert len({*found}) == len(found)


def test_a_person_is_never_on_both_sides(tmp_path):
    names = [f"P{i:02d}/{scan}" for i in range(10) for scan in ("flair", "t1")]
    volumes(tmp_path / "in", *names)
    store = prepare(tmp_path / "in", tmp_path / "store", size=8, progress=False)
    sides = [{name[:3] for name in store.split(part)} for part in ("train", "test")]
    assert len(store.subjects) == 10 and not sides[0] & sides[1]
    assert "told by names, as P00/flair.nii.gz, P00/t1.nii.gz for 'P00'" in str(open_cohort(tmp_path / "in"))
    each = open_cohort(tmp_path / "in", images="**/{id}.nii.gz", on_error="skip")
    assert len({case.subject for case in each.cases}) == len(each), "a pattern overrules the names"


def test_a_table_without_subjects_takes_them_from_names(tmp_path):
    volumes(tmp_path, "P1/a", "P1/b", "P2/a")
    (tmp_path / "t.csv").write_text("image\nP1/a.nii.gz\nP1/b.nii.gz\nP2/a.nii.gz\n")
    assert [case.subject for case in open_cohort(tmp_path / "t.csv").cases] == ["P1", "P1", "P2"]
    (tmp_path / "t.csv").write_text("image,subject\nP1/a.nii.gz,x\nP1/b.nii.gz,y\nP2/a.nii.gz,x\n")
    assert [case.subject for case in open_cohort(tmp_path / "t.csv").cases] == ["x", "y", "x"]


@pytest.mark.parametrize("text", ["b'utf'", "bom", "semicolons", "crlf", "tabs"])
def test_participants_without_the_prefix_as_spreadsheets_write_them(tmp_path, text):
    for i in (1, 2, 3):
        volumes(tmp_path, f"sub-{i:02d}/anat/sub-{i:02d}_T1w")
    table = "participant_id\tage\tsex\n01\t40\tF\n02\t50\tM\n9\t60\tM\n"
    table = table.replace("\t", ";") if text == "semicolons" else table
    table = table.replace("\n", "\r\n") if text == "crlf" else table
    (tmp_path / "participants.tsv").write_text(table, encoding="utf-8-sig" if text == "bom" else "utf-8", newline="")
    cohort = open_cohort(tmp_path)
    assert [(case.age, case.sex) for case in cohort.cases] == [(40, "F"), (50, "M"), (None, None)]
    assert "participants.tsv has no row for 1 case: sub-03" in str(cohort)


def test_a_table_that_fits_nobody_is_told(tmp_path):
    volumes(tmp_path, "sub-01/anat/sub-01_T1w", "sub-02/anat/sub-02_T1w")
    (tmp_path / "participants.tsv").write_text("participant_id\tage\nA7\t40\nB8\t50\n")
    assert "fits none of the ids of" in str(open_cohort(tmp_path)) and "A7, B8" in str(open_cohort(tmp_path))
    (tmp_path / "more.csv").write_text("id,age\nA7,40\nB8,50\n")
    with pytest.raises(InputError, match=r"more.csv: its column 'id' \(A7, B8\) fits none of the ids.*columns="):
        open_cohort(tmp_path, table="more.csv")


@pytest.mark.parametrize("cells", ["diagnosis\tCONTROL", "sex\tO", "age\t89+", "age\t35-40", "gender\tnon-binary",
                                   "age\tP40Y"])  # fmt: skip
def test_a_column_that_nobody_asked_for_stops_nothing(tmp_path, cells):
    column, cell = cells.split("\t")
    volumes(tmp_path, "sub-01/anat/sub-01_T1w", "sub-02/anat/sub-02_T1w")
    (tmp_path / "participants.tsv").write_text(f"participant_id\t{column}\nsub-01\t{cell}\nsub-02\tn/a\n")
    cohort = open_cohort(tmp_path)
    assert len(cohort) == 2 and not cohort.left_out and f"'{cell}'" in str(cohort)
    (tmp_path / "t.csv").write_text(f"image,{column}\nsub-01/anat/sub-01_T1w.nii.gz,{cell}\n")
    assert len(open_cohort(tmp_path / "t.csv")) == 1
    with pytest.raises(InputError, match="t.csv: has the"):
        open_cohort(tmp_path / "t.csv", columns={"sex" if column == "gender" else
                                                 "grade" if column == "diagnosis" else column: column})


def test_cells_that_name_files_and_classes(tmp_path):
    volumes(tmp_path, "images/a", "masks/a", "images/b")
    table = tmp_path / "t.csv"
    table.write_text("image\nimages\\a.nii.gz\n")
    assert open_cohort(table).cases[0].images == (tmp_path / "images/a.nii.gz",)
    table.write_text("image,label\nimages/a.nii.gz,benign\n")
    with pytest.raises(InputError, match="t.csv: has the label 'benign'.*numbers from 0"):
        open_cohort(table)
    table.write_text("image\na\n")
    with pytest.raises(InputError, match="2 files called 'a': images/a.nii.gz, masks/a.nii.gz. Write the path"):
        open_cohort(table)


def test_names_in_another_unicode_form(tmp_path):
    mac, linux = (unicodedata.normalize(form, "Zoë") for form in ("NFD", "NFC"))
    volumes(tmp_path / "in", f"t/{mac}", "t/Uwe", mask=[f"m/{linux}", "m/Uwe"])
    cohort = open_cohort(tmp_path / "in", images="t/{id}.nii.gz", masks="m/{id}.nii.gz")
    assert all(case.mask for case in cohort.cases)
    (tmp_path / "in/t.csv").write_text(f"image,age\n{linux}.nii.gz,40\n", encoding="utf-8")
    (tmp_path / f"in/m/{linux}.nii.gz").unlink()
    assert open_cohort(tmp_path / "in/t.csv").cases[0].age == 40


def test_a_mask_that_fits_no_image_is_named(tmp_path):
    volumes(tmp_path, *[f"img/c{i}" for i in range(4)], mask=[f"msk/{'C' if i < 2 else 'c'}{i}" for i in range(4)])
    with pytest.raises(InputError, match="msk/C0.nii.gz: is a mask by its name, but there is no image for 'C0'"):
        open_cohort(tmp_path, images="img/{id}.nii.gz", masks="msk/{id}.nii.gz")
    cohort = open_cohort(tmp_path, images="img/{id}.nii.gz", masks="msk/{id}.nii.gz", on_error="skip")
    assert len(cohort.left_out) == 2 and sum(case.mask is not None for case in cohort.cases) == 2


def series(folder: Path, n: int = 3, **tags) -> None:
    """A small CT series."""
    folder.mkdir(parents=True, exist_ok=True)
    given = {"StudyInstanceUID": generate_uid(), "SeriesInstanceUID": generate_uid(), "SeriesDescription": "T1",
             "PatientID": "P", "Modality": "CT"} | tags
    for k in range(n):
        data = pydicom.Dataset()
        data.file_meta = FileMetaDataset()
        data.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
        data.file_meta.MediaStorageSOPClassUID = CTImageStorage
        data.file_meta.MediaStorageSOPInstanceUID = data.SOPInstanceUID = generate_uid()
        data.SOPClassUID = CTImageStorage
        data.update(given)
        data.Rows, data.Columns, data.PixelSpacing, data.SamplesPerPixel = 8, 9, [2, 2], 1
        data.PhotometricInterpretation, data.BitsAllocated, data.BitsStored, data.HighBit = "MONOCHROME2", 16, 16, 15
        data.ImageOrientationPatient, data.ImagePositionPatient = [1, 0, 0, 0, 1, 0], [0, 0, 3 * k]
        data.PixelRepresentation = 1
        data.PixelData = np.random.default_rng(k).integers(0, 999, (8, 9)).astype(np.int16).tobytes()
        data.save_as(folder / f"{k}.dcm", enforce_file_format=True)


@pytest.mark.parametrize("first", ["a", "z"])
def test_the_original_series_is_t1_whatever_its_folder_is_called(tmp_path, first):
    other = "z" if first == "a" else "a"
    study = generate_uid()
    series(tmp_path / f"p1/{first}", StudyInstanceUID=study, ImageType=["ORIGINAL", "PRIMARY"], SeriesNumber=2)
    series(tmp_path / f"p1/{other}", StudyInstanceUID=study, ImageType=["DERIVED", "SECONDARY"], SeriesNumber=1)
    series(tmp_path / "p1/b", StudyInstanceUID=study, ImageType=["ORIGINAL", "PRIMARY"], SeriesNumber=7)
    series(tmp_path / "p2/c", PatientID="Q", ImageType=["DERIVED", "SECONDARY"])
    cohort = open_cohort(tmp_path)
    assert [case.modalities for case in cohort.cases] == [("T1", "T1 (derived)", "T1 2"), ("T1 (derived)",)]
    images = dict(zip(cohort.cases[0].modalities, cohort.cases[0].images))
    assert [images[name].name for name in ("T1", "T1 2", "T1 (derived)")] == [first, "b", other]
    assert "share a description" in str(cohort)


def test_an_identifier_that_stands_for_several_people(tmp_path):
    for i in range(4):
        series(tmp_path / f"in/p{i}", PatientID="ANON")
    with pytest.raises(InputError, match="all 4 cases have the subject 'ANON'.*--table.*--test 0"):
        prepare(tmp_path / "in", tmp_path / "store", size=8, progress=False)
    assert len(prepare(tmp_path / "in", tmp_path / "all", size=8, test=0, progress=False)) == 4
    series(tmp_path / "in/p9", PatientID="ANON", PatientSex="F")
    series(tmp_path / "in/p8", PatientID="ANON", PatientSex="M")
    with pytest.raises(InputError, match="PatientID 'ANON' on people of different sex.*{subject}"):
        open_cohort(tmp_path / "in")


def test_every_file_is_accounted_for(tmp_path):
    volumes(tmp_path, "a", "b")
    for name in ("notes.txt", "b.json", "x.mat.txt", "Thumbs.db", "._a.nii.gz", "__MACOSX/a.nii.gz", "extra.npz"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"x")
    Image.new("L", (9, 9)).save(tmp_path / "preview.bmp")
    assert "1 pictures beside the volumes, as preview.bmp" in str(open_cohort(tmp_path))
    (tmp_path / "preview.bmp").rename(tmp_path / "scan.mnc")
    with pytest.raises(InputError, match="scan.mnc: is of a kind that is not read. .*mnc2nii"):
        open_cohort(tmp_path)
    (tmp_path / "scan.mnc").unlink()
    text = str(open_cohort(tmp_path))
    assert "files:    6 seen, 2 used, 4 left out: 2 .txt files, as notes.txt; 1 .json files, as b.json; " \
        "1 .npz files, as extra.npz" in text
    store = prepare(tmp_path, tmp_path.parent / f"{tmp_path.name}-store", size=8, progress=False)
    assert "6 seen, 2 used, 4 left out" in store.notes[-1]


def test_a_table_beside_the_images_is_mentioned(tmp_path):
    volumes(tmp_path, "p1_T1", "p2_T1")
    (tmp_path / "people.csv").write_text("code,age,sex\np1,40,F\np2,50,M\n")
    (tmp_path / "regions.csv").write_text("code,name\n1,liver\n2,spleen\n")
    text = str(open_cohort(tmp_path))
    assert "people.csv knows these cases (code, age, sex) and is not read; --table people.csv" in text
    assert "regions.csv knows" not in text
    assert [case.age for case in open_cohort(tmp_path, table="people.csv").cases] == [40, 50]


def test_a_reading_is_told_when_a_store_is_made(tmp_path, capsys):
    write_nifti(tmp_path / "a.nii.gz", np.random.default_rng(0).random((8, 9, 10)) * 100)
    write_nifti(tmp_path / "b.nii.gz", np.random.default_rng(1).random((8, 9, 10)) * 100)
    ssl3d.prepare(tmp_path, tmp_path.parent / f"{tmp_path.name}-store", size=8, test=0)
    assert "files:    2 seen, 2 used, 0 left out" in capsys.readouterr().out


def test_series_without_a_patient_are_told_apart_by_their_folders(tmp_path):
    for person in ("P1", "P2"):
        for visit in ("visit1", "visit2"):
            series(tmp_path / f"{person}/{visit}", PatientID="")
    cohort = open_cohort(tmp_path)
    assert sorted({case.subject for case in cohort.cases}) == ["P1", "P2"] and "PatientID" not in cohort.told_by
    volumes(tmp_path, "P3_visit1", "P3_visit2")
    series(tmp_path / "x", PatientID="P9")
    assert {case.subject for case in open_cohort(tmp_path).cases} == {"P1", "P2", "P3", "P9"}


@pytest.mark.parametrize("table, said", [
    ("nr,patient,age\n1,4,40\n2,3,50\n3,2,60\n4,9,70\n", "columns nr, patient fit the ids.*columns="),
    ("id,label,label\n1,0,1\n", "two columns called 'label'"),
    ("id,age\n", "has no rows"),
    ("who,age\nA,40\n", "It has who: A.*columns="),
])  # fmt: skip
def test_a_key_column_is_not_guessed(tmp_path, table, said):
    volumes(tmp_path, "1", "2", "3", "4")
    (tmp_path / "t.csv").write_text(table)
    with pytest.raises(InputError, match=said):
        open_cohort(tmp_path, table="t.csv")
    (tmp_path / "t.xlsx").write_bytes(b"PK")
    with pytest.raises(InputError, match="t.xlsx: is a spreadsheet, which is not read. Save it as 'CSV"):
        open_cohort(tmp_path, table="t.xlsx")


def test_ages_that_nobody_has(tmp_path):
    volumes(tmp_path, "1", "2")
    (tmp_path / "t.csv").write_text("id,age\n1,-5\n2,400\n")
    cohort = open_cohort(tmp_path, table="t.csv")
    assert [case.age for case in cohort.cases] == [None, None] and "the age '400' is not used" in str(cohort)
