"""Grids in files of settings: what they mean, and messages about wrong ones."""

import json

import pytest

from iterdiff.study.catalog import load_study
from iterdiff.study.grid import load_grid
from iterdiff.study.schema import schema

OWN = "tests.study.own_runs"


@pytest.fixture
def load(tmp_path):
    """Load a grid from the text of a file."""

    def load(text, *assignments, **changes):
        path = tmp_path / "g.toml"
        path.write_text(text, encoding="utf-8")
        return load_grid(str(path), changes, assignments)

    return load


def test_the_grid_is_the_product_and_the_zip_goes_together(load):
    grid = load(
        'study = "ridge"\nsteps = 9\n[algorithms."heavy ball"]\ntype = "HeavyBall"\n'
        '[grid]\n"problem.penalty" = [0.1, 0.01]\nproblem.seed = [0, 1, 2]\n'
        "[grid.zip]\nsteps = [10, 20]\n"
        '\'algorithms."heavy ball".step_size\' = ["1/L", 0.5]\n'
    )
    assert grid.shape == (2, 3, 2) and grid.size == 12
    assert [axis.name for axis in grid.axes] == ["problem.penalty", "problem.seed", "zip"]
    assert grid.points(7) == (1, 0, 1)
    words = grid.words(7)
    assert (words["problem"]["penalty"], words["problem"]["seed"], words["steps"]) == (0.01, 0, 20)
    assert words["algorithms"] == {"heavy ball": {"type": "HeavyBall", "step_size": 0.5}}
    assert 'algorithms."heavy ball".step_size = 0.5' in grid.label(7)
    assert len({json.dumps(grid.words(i)) for i in range(12)}) == 12


def test_precedence_is_defaults_file_set_options(load):
    text = 'study = "ridge"\nsteps = 9\nevery = 3\nprobes = 1\n'
    words = load(text, "steps=12", "problem.start = 0.5", "title=a word", every=4).words(0)
    assert words["problem"]["penalty"] == 0.1  # the default of `ridge`
    assert (words["probes"], words["steps"], words["every"]) == (1, 12, 4)
    assert words["problem"]["start"] == 0.5 and words["title"] == "a word"


def test_an_assignment_replaces_a_list_of_the_grid(load):
    text = 'study = "ridge"\nsteps = 5\n[grid]\n"problem.seed" = [0, 1]\n'
    assert load(text, 'grid."problem.seed"=[5, 6, 7]').size == 3
    assert load(text, "grid.problem.seed=[5]", "grid.problem.start=[0.0, 1.0]").shape == (1, 2)


def test_studies_and_whole_tables_may_vary(load):
    grid = load(
        'steps = 5\n[modes.m]\ntype = "Implicit"\n[grid]\n"modes.m" = [{type = "OneStep"}, '
        '{type = "Unrolled", last = 3}]\nstudy = ["ridge", "curse-ridge"]\n'
    )
    assert grid.words(0)["modes"] == {"m": {"type": "OneStep"}}
    assert [grid.words(i)["problem"]["data"] for i in (0, 1)] == ["breast-cancer", "diabetes"]


BAD = {
    "unknown key": ('study = "ridge"\n[grid]\n"problem.penalti" = [1.0]', "line 3", "`penalty`"),
    "wrong type": ('study = "ridge"\n[grid]\nproblem.penalty = [1.0, "x"]', "line 3", "number"),
    "out of range": ('study = "ridge"\n[grid]\nproblem.penalty = [1.0, -1.0]', "line 3", "than 0"),
    "empty grid": ('study = "ridge"\n[grid]\n', "line 2", "empty"),
    "empty list": ('study = "ridge"\n[grid]\nsteps = []', "line 3", "empty"),
    "no list": ('study = "ridge"\n[grid]\nsteps = 3', "line 3", "list"),
    "twice": ('study = "ridge"\n[grid]\nsteps = [3, 3]', "line 3", "twice"),
    "two spellings": ('study = "ridge"\n[grid]\n"steps" = [1]\n[grid.zip]\nsteps = [2]', "twice"),
    "unequal": ('study = "ridge"\n[grid.zip]\nsteps = [1]\nevery = [1, 2]', "line 3", "line 4"),
    "empty zip": ('study = "ridge"\n[grid.zip]\n', "line 2", "empty"),
    "label": ('study = "ridge"\n[grid]\n"modes.oneStep.type" = ["OneStep"]', "`one-step`"),
    "no key": ('study = "ridge"\n[grid]\n"algorithms.GD, 1/L.step" = [1]', "line 3", "Quote"),
    "no study": ("steps = 5", "`study`"),
    "no module": ('problem = "tests.study.own_rums:run"', "line 1", "no module"),
    "no function": (f'problem = "{OWN}:rum"', "line 1", "`run`"),
    "no run": (f'problem = "{OWN}:NOTHING"', "line 1", "(problem, x0, theta)"),
    "wrong keys": (f'problem = "{OWN}:wrong"', "line 1", "`x0`"),
    "wrong parameter": (f'[problem]\nfunction = "{OWN}:run"\ntheeta = 1', "`theta`"),
    "wrong parameter in the grid": (
        f'problem = "{OWN}:run"\n[grid]\n"problem.theeta" = [1.0]',
        "grid",
        "line 3",
        "`theta`",
    ),
    "no spectrum": (
        f'problem = "{OWN}:run"\n[algorithms.P]\ntype = "Picard"\ndamping = "1/L"',
        "spectrum=(l, L)",
    ),
    "missing parameter": (f'problem = "{OWN}:needs"', "`size`"),
    "no algorithm": (f'problem = "{OWN}:as_mapping"', "`algorithms`"),
    "two problems": (f'study = "ridge"\nproblem = "{OWN}:run"', "line 1", "Leave one"),
    "model": ('[problem]\nmodel = "logistik"\ndata = "a.csv"', "line 2", "`logistic`"),
    "two models": ('study = "ridge"\n[problem]\nmodel = "logistic"', "line 3", "contradicts"),
}


@pytest.mark.parametrize("name", BAD)
def test_wrong_settings_are_named_with_key_line_and_nearest_word(name, load):
    text, *expected = BAD[name]
    with pytest.raises(ValueError) as error:
        load(text)
    assert all(part in str(error.value) for part in expected), error.value


def test_a_spectrum_that_the_function_returns_gives_step_sizes(load):
    text = f'problem = "{OWN}:as_mapping"\n[algorithms.GD]\ntype = "GradientDescent"\n'
    assert load(text + 'step_size = "1/L"').size == 1


ASSIGNMENTS = {
    "unknown": (["problem.penalti=1.0"], "`penalty`"),
    "no value": (["steps"], "KEY=VALUE"),
    "also in the grid": (["grid.steps=[1, 2]", "steps=3"], "--set steps=3"),
    "inside a number": (["steps.x=3"], "`steps`"),
}


@pytest.mark.parametrize("name", ASSIGNMENTS)
def test_wrong_assignments_are_named(name):
    assignments, expected = ASSIGNMENTS[name]
    with pytest.raises(ValueError) as error:
        load_grid("ridge", {}, assignments)
    assert expected in str(error.value)


def test_an_option_that_the_grid_varies_is_refused(load):
    with pytest.raises(ValueError, match="`steps`"):
        load('study = "ridge"\n[grid]\nsteps = [3, 4]', steps=5)


def test_a_billion_cells_are_described_and_not_made(load):
    lists = "\n".join(f'"modes.m{i}.last" = {list(range(1, 11))}' for i in range(9))
    modes = "\n".join(f'[modes.m{i}]\ntype = "Unrolled"' for i in range(9))
    grid = load(f'study = "scalar-quadratic"\nsteps = 10\n{modes}\n[grid]\n{lists}\n')
    assert grid.size == 10**9
    assert grid.words(10**9 - 1)["modes"]["m8"] == {"type": "Unrolled", "last": 10}


def test_a_table_with_a_model(tmp_path, load):
    (tmp_path / "t.csv").write_text("a,b,y\n1,2,3\n2,1,5\n4,4,4\n0,3,1\n")
    data = f'data = "{tmp_path / "t.csv"}"\ntarget = "y"\nmodel = "ridge"\n'
    grid = load(f"steps = 4\n[problem]\n{data}[grid]\nproblem.penalty = [0.1, 1.0]\n")
    assert grid.words(1)["study"] == "ridge" and grid.words(1)["problem"]["penalty"] == 1.0


def test_outputs_name_variables(load):
    text = 'study = "ridge"\nsteps = 4\noutputs = ["jacobian_errors"]\n'
    with pytest.raises(ValueError, match="line 3.*'jacobian_error'"):
        load(text)


def test_stopping_rules_have_the_keys_of_their_class(load):
    with pytest.raises(ValueError, match="line 4.*`max_steps`"):
        load('study = "ridge"\n[stop]\ntype = "ResidualBelow"\nmax_step = 5\n')
    with pytest.raises(ValueError, match="line 3.*`ResidualBelow`"):
        load('study = "ridge"\n[stop]\ntype = "ResidualBelw"\n')


def test_load_study_refuses_a_grid(tmp_path):
    path = tmp_path / "g.toml"
    path.write_text('study = "ridge"\n[grid]\nsteps = [3, 4]\n')
    with pytest.raises(ValueError, match="`grid`"):
        load_study(str(path))


def test_the_schema_has_the_keys_that_are_validated():
    found = schema()
    by_study = {
        c["properties"]["study"]["const"]: c for c in found["anyOf"] if "study" in c["properties"]
    }
    keys = {"study", "title", "steps", "every", "problem", "algorithms", "modes", "grid"}
    assert keys <= by_study["ridge"]["properties"].keys()
    assert not by_study["ridge"]["additionalProperties"]
    assert found["$defs"]["HeavyBall"]["properties"].keys() >= {"step_size", "momentum", "steps"}
    # A function, and a table with either model.
    assert len(found["anyOf"]) == len(by_study) + 3
