"""The page of the explorer, run by Streamlit's own test harness without a browser."""

import pytest

from iterdiff.explore import app
from iterdiff.explore.files import stored, without_folder
from iterdiff.explore.server import command
from iterdiff.study.catalog import load_study
from iterdiff.study.files import write_netcdf
from iterdiff.study.run import run

testing = pytest.importorskip("streamlit.testing.v1", reason="the extra `explore` is not installed")

SECONDS = 120


@pytest.fixture(autouse=True)
def arguments(monkeypatch):
    """Let the page start without arguments, or with those that a test sets."""
    monkeypatch.setattr("sys.argv", [app.__file__])
    return monkeypatch


def started(query=None):
    """Return the page with an address."""
    test = testing.AppTest.from_file(app.__file__, default_timeout=SECONDS)
    for name, value in (query or {}).items():
        test.query_params[name] = value
    return test.run()


def test_a_slider_changes_verdicts_and_address():
    test = started({"b": "1"})
    assert not test.exception and not test.error and test.slider[1].value == 1.0
    before = " ".join(m.value for m in test.markdown)
    test.sidebar.slider(key="scalar-quadratic: theta").set_value(0.2).run()
    assert not test.exception and test.query_params["theta"] == "0.2"
    after = " ".join(m.value for m in test.markdown)
    assert "burn\\-in" in before and before != after
    assert "load_study" in test.code[0].value and "0.2" in test.code[0].value
    test.sidebar.slider(key="scalar-quadratic: theta").set_value(0.0).run()
    assert "singular" in test.error[0].value and not test.exception


def test_an_address_with_mistakes_is_explained():
    test = started({"problem": "fixed-point", "rat": "1"})
    assert not test.exception and "rate" in test.warning[0].value
    assert "fixed point" in test.caption[0].value


def test_a_stored_study_is_shown(tmp_path, arguments):
    path = tmp_path / "a.nc"
    write_netcdf(run(load_study("fixed-point", steps=100, title="<b>*mine*</b>")), path)
    arguments.setattr("sys.argv", [app.__file__, str(path)])
    test = started()
    assert not test.exception and not test.error
    assert test.sidebar.selectbox[0].value == "Picard"
    path.write_text("nothing")
    assert "not a NetCDF file" in started().error[0].value.replace("\\", "")


def test_texts_are_literal():
    assert app.literal("<b>*x*</b> $a$ :x:") == r"\<b\>\*x\*\</b\> \$a\$ \:x\:"


def test_the_server_is_told_to_stay_at_home():
    words = command(None, None, browser=False)
    assert {"--server.address=127.0.0.1", "--browser.gatherUsageStats=false"} <= set(words)
    assert "--server.headless=true" in words


def test_a_table_keeps_its_place_and_its_name():
    path = stored(b"a,y\n1,2\n", "../my table.csv")
    assert stored(b"a,y\n1,2\n", "../my table.csv") == path and path.name == "my table.csv"
    assert without_folder(f"`data`: {path}, line 2") == "`data`: my table.csv, line 2"
