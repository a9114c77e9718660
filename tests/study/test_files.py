"""The files of a study: all of them or none."""

import numpy as np
import pytest
import xarray

from iterdiff.study.files import atomic_folder, write_netcdf


def test_failed_run_leaves_nothing(tmp_path):
    out = tmp_path / "a" / "b"
    with pytest.raises(RuntimeError), atomic_folder(out) as folder:
        (folder / "half.png").write_text("half")
        raise RuntimeError
    assert list(tmp_path.iterdir()) == []


def test_failed_write_names_the_folder(tmp_path):
    with pytest.raises(ValueError, match="`out`"), atomic_folder(tmp_path / "a") as folder:
        (folder / "half.png").write_text("half")
        raise OSError(28, "No space left on device")
    assert list(tmp_path.iterdir()) == []


def test_successful_run_replaces_its_own_files_only(tmp_path):
    (tmp_path / "mine.txt").write_text("mine")
    (tmp_path / "old.png").write_text("old")
    with atomic_folder(tmp_path) as folder:
        (folder / "old.png").write_text("new")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["mine.txt", "old.png"]
    assert (tmp_path / "old.png").read_text() == "new"


def test_netcdf_is_written_by_python(tmp_path):
    # Python raises OSError where the HDF5 library may crash: /dev/full is a full disk.
    data = xarray.Dataset({"a": ("x", np.arange(3.0)), "word": ((), "yes")}, attrs={"title": "t"})
    write_netcdf(data, tmp_path / "a.nc")
    back = xarray.load_dataset(tmp_path / "a.nc", engine="h5netcdf")
    xarray.testing.assert_identical(back.drop_vars("word"), data.drop_vars("word"))
    full = tmp_path / "full.nc"
    full.symlink_to("/dev/full")
    with pytest.raises(OSError, match="space"):
        write_netcdf(data, full)
