"""Which files are scans, by their names and first bytes."""

import os
from pathlib import Path

import pytest
from pydicom import dcmread, uid
from test_dicom import SYNTAXES, bare, write, write_enhanced

from ssl3d.data.formats import SUFFIXES, UNREAD, is_dicom, is_scan_name, is_series, stem, unread


@pytest.mark.parametrize("syntax", SYNTAXES)
@pytest.mark.parametrize("meta, preamble", [(False, False), (True, False), (False, True), (True, True)])
def test_dicom_is_known_by_its_first_tag(tmp_path, syntax, meta, preamble):
    file = write(tmp_path / "s", leave_out=range(1, 6)) / "IM000.dcm"
    bare(file, SYNTAXES[syntax], meta, preamble)
    assert is_dicom(file) and is_dicom(file.rename(tmp_path / "IM0"))


@pytest.mark.parametrize("tag", ["SpecificCharacterSet", "ImageType", "SOPClassUID", "StudyDate", "Modality"])
@pytest.mark.parametrize("syntax", SYNTAXES)
def test_whichever_tag_is_the_first(tmp_path, tag, syntax):
    """Whoever takes names out of files takes other tags, too."""

    def edit(ds):
        ds.SpecificCharacterSet, ds.ImageType, ds.StudyDate = "ISO_IR 100", ["ORIGINAL", "PRIMARY"], "20260101"
        for name in ("SpecificCharacterSet", "ImageType", "SOPClassUID", "SOPInstanceUID", "StudyDate", "Modality"):
            if name == tag:
                break
            del ds[name]

    file = write(tmp_path / "s", leave_out=range(1, 6)) / "IM000.dcm"
    ds = dcmread(file)
    edit(ds)
    ds.save_as(file, enforce_file_format=False)
    bare(file, SYNTAXES[syntax])
    assert is_dicom(file)


@pytest.mark.parametrize(
    "data",
    [b"", b"\x08", bytes(400), b"\x08" + bytes(400), b"P5 20 30 255\n" + bytes(600), b"MZ\x90\x00" + bytes(300)]
    + [b"GIF89a" + bytes(200), b"II*\x00\x08\x00\x00\x00" + bytes(100), b"text\n" * 90]
    + [b"\x08\x00\x05\x00ZZ" + bytes(9)],
)
def test_other_files_are_no_dicom(tmp_path, data):
    (tmp_path / "a").write_bytes(data)
    assert not is_dicom(tmp_path / "a") and not is_series(tmp_path / "a")


def test_what_is_no_file_is_no_dicom(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    assert not is_dicom(tmp_path / "pipe") and not is_dicom(tmp_path) and not is_dicom(tmp_path / "nowhere")


def test_a_multi_frame_file_is_a_series(tmp_path):
    for name in ("a.dcm", "A.DCM", "noending"):
        file = write_enhanced(tmp_path / "s" / name)
        assert is_series(file) and stem(file) == name.split(".")[0]
    assert is_series(tmp_path / "s") and is_series(tmp_path / "s" / uid.generate_uid())
    assert not is_scan_name(file)


@pytest.mark.parametrize("ending", UNREAD)
def test_every_unread_kind_has_a_way_out(ending):
    for name in (f"a{ending}", f"A{ending.upper()}", f"a.b{ending}"):
        assert unread(Path(name)) == UNREAD[ending] and not is_scan_name(Path(name))


@pytest.mark.parametrize("ending", SUFFIXES)
def test_names_of_scans(ending):
    for name in (f"a.b{ending}", f"a.b{ending.upper()}"):
        assert is_scan_name(Path(name)) and unread(Path(name)) is None and stem(Path(name)) == "a.b"
