"""Tables: those of scikit-learn, a user's CSV file, and messages about unsuitable ones."""

import dataclasses

import numpy as np
import pytest

from iterdiff.study.problems.datasets import bundled, load_table, read_csv


@pytest.fixture
def write(tmp_path):
    """A function that writes a CSV file."""

    def written(text, encoding="utf-8"):
        path = tmp_path / "table.csv"
        path.write_text(text, encoding=encoding)
        return path

    return written


def test_table_is_read(write):
    path = write('a, b,kind\n1,0.1,"x, y"\n\n-2,1e3, z \n,,\n0,3,z\n', encoding="utf-8-sig")
    table = read_csv(path, "kind")
    np.testing.assert_array_equal(table.features, [[1, 0.1], [-2, 1000], [0, 3]])
    assert table.columns == ("a", "b") and table.target.tolist() == ["x, y", "z", "z"]
    assert table.signs().tolist() == [-1, 1, 1] and table.name == "table.csv"
    assert read_csv(write("y,a\n1,2\n5,4\n"), "y").target.tolist() == [1.0, 5.0]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("a,b\n1,2\n3,4\n", ["`target`", "'y'", "`a`"]),
        ("a,Y\n1,2\n3,4\n", ["`target`", "'y'", "Did you mean `Y`"]),
        ("a;y\n1;2\n3;4\n", ["`target`", "comma"]),
        ("a\ty\n1\t2\n3\t4\n", ["`target`", "comma"]),
        ("a,y\n1,2\nred,4\n", ["line 3", "`a`", "'red'", "column"]),
        ("a,y\n1,2\n,4\n", ["line 3", "`a`", "empty"]),
        ("a,y\n\n1,2\n3, \n", ["line 4", "`y`", "empty"]),
        ("a,y\n1,2\n3,4,5\n", ["line 3"]),
        ("a,b,y\n1,2,3\n3,4\n", ["line 3", "`y`", "empty"]),
        ("a,y\n1,2\nnan,4\n", ["line 3", "`a`", "'nan'"]),
        ("a,y\n1,2\n3,inf\n", ["line 3", "`y`", "'inf'"]),
        ("a,y\n1,no\n3,nan\n", ["line 3", "`y`", "'nan'"]),
        ("a,y\n1,2\n", ["rows", "1"]),
        ("a,y\n", ["rows", "0"]),
        ("", ["empty"]),
        ("y\n1\n2\n", ["feature"]),
        ("a,a,y\n1,2,3\n3,4,5\n", ["'a'"]),
    ],
)
def test_unsuitable_file_is_described(write, text, words):
    path = write(text)
    with pytest.raises(ValueError) as error:
        read_csv(path, "y")
    assert str(path) in str(error.value)
    assert all(word in str(error.value) for word in words), str(error.value)


def test_file_that_cannot_be_read_is_named(tmp_path):
    with pytest.raises(ValueError, match=r"none\.csv"):
        read_csv(tmp_path / "none.csv", "y")
    (tmp_path / "latin.csv").write_bytes("a,y\n1,ü\n2,b\n".encode("latin-1"))
    with pytest.raises(ValueError, match="UTF-8"):
        read_csv(tmp_path / "latin.csv", "y")


def test_table_that_fits_no_regression_is_described(write):
    table = read_csv(write("a,b,y\n1,1,yes\n2,1,no\n3,1,maybe\n"), "y")
    with pytest.raises(ValueError, match="3 different"):
        table.signs()
    with pytest.raises(ValueError, match="text"):
        table.numbers()
    with pytest.raises(ValueError, match="`b`"):
        table.standardised()
    with pytest.raises(ValueError, match="constant"):
        dataclasses.replace(table, target=np.ones(3)).numbers()
    with pytest.raises(ValueError, match="1 different"):
        dataclasses.replace(table, target=np.ones(3)).signs()


def test_bundled_tables_are_standardised():
    table = load_table("breast-cancer", "")
    scaled = table.standardised()
    assert scaled.shape == (569, 30) and len(table.columns) == 30
    np.testing.assert_allclose(scaled.mean(0), np.zeros(30), atol=1e-12)
    np.testing.assert_allclose(scaled.std(0), np.ones(30), rtol=1e-12)
    assert set(table.signs()) == {-1.0, 1.0} and (table.signs() > 0).sum() == 357
    target = bundled("diabetes").numbers()
    np.testing.assert_allclose([target.mean(), target.std()], [0, 1], atol=1e-12)


def test_name_of_a_table_is_checked():
    with pytest.raises(ValueError, match="`diabetes`"):
        load_table("diabete", "")
    with pytest.raises(ValueError, match="`target`"):
        load_table("mine.csv", "")
