"""The explorer's page: Streamlit's widgets around pure functions. Run by `iterdiff explore`."""

import re
import sys
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from iterdiff.explore.charts import Figure
from iterdiff.explore.choices import LATE_START, SUBJECTS, UPLOAD, Choice, choice, from_address
from iterdiff.explore.compute import drawn, shown
from iterdiff.explore.controls import Control, Flag, Number, Scale, Word, Words
from iterdiff.explore.downloads import DOWNLOADS, SUFFIXES
from iterdiff.explore.figures import of_case
from iterdiff.explore.files import column_names, opened, stored, without_folder
from iterdiff.explore.words import script
from iterdiff.jaxtools.extras import import_extra
from iterdiff.study.run import cases
from iterdiff.study.views.advice import advice, sentence
from iterdiff.study.views.cells import cell, cells, grid_axes
from iterdiff.study.views.verdicts import verdicts

MARKUP = re.compile(r"([\\`*_{}\[\]()#+\-.!|~<>$:&])")
"""What Markdown may read as more than itself."""


def page(path: Path | None) -> None:
    """Draw the page: of a study's results if there is a path, else of what the reader chooses."""
    st = import_extra("streamlit", "explore")
    st.set_page_config(page_title="iterdiff explore", layout="wide")
    st.title("When is the derivative right?")
    if path is None:
        _live(st)
    else:
        _stored(st, path)


def literal(text: str) -> str:
    """Return a text such that Markdown shows it as it is."""
    return MARKUP.sub(r"\\\1", text)


def _live(st: Any) -> None:
    """Let the reader choose, run what he chose, and show it.

    New controls are drawn before their programs compile. Known ones are drawn after the first
    figure, which so follows a slider sooner.
    """
    state, settings, upload = st.session_state, st.sidebar.container(), st.sidebar.container()
    if "problem" not in state:
        _read_address(st)
    for complaint in state["complaints"]:
        st.warning(literal(complaint))
    chosen = _chosen(state)
    st.query_params.from_dict(chosen.address())
    known = state.get("controls") == chosen.controls
    if not known:
        state["controls"] = chosen.controls
        _controls(settings, chosen)
    try:
        table = _table(upload, chosen)
        found = shown(chosen, table)
    except ValueError as error:
        st.error(literal(without_folder(str(error))))
        if known:
            _controls(settings, chosen)
        return
    st.caption(literal(found.study.title))
    charts = drawn(chosen, found)
    beside = _first(st, next(charts))
    if known:
        _controls(settings, chosen)
    [(_, case)] = cases(found.data)
    said = map(sentence, (*advice(case), *verdicts(found.data)[0].verdicts))
    _in_words(beside, found.notes, said)
    for chart in charts:
        _chart(st, *chart)
    _downloads(st, found.data)
    with st.expander("Copy the code: a program that draws the same"):
        if chosen.subject.reads_table and chosen["data"] == UPLOAD and table is not None:
            st.caption("It reads your table from the folder in which you run it.")
            table = Path(table[0]).name, table[1]
        st.code(script(chosen, table), language="python")


def _read_address(st: Any) -> None:
    """Store what the address chooses as the widgets' values."""
    state = st.session_state
    first, state["complaints"] = from_address(dict(st.query_params))
    state["problem"] = first.problem
    for name, value in first.values:
        state[_key(first.problem, name)] = value


def _key(problem: str, name: str) -> str:
    return f"{problem}: {name}"


def _chosen(state: Any) -> Choice:
    """Return what the widgets hold; those that are not drawn yet hold their defaults."""
    problem = state["problem"]
    algorithm = state.get(_key(problem, "algorithm"))
    values = {}
    for control in choice(problem, {"algorithm": algorithm}).controls:
        key = _key(problem, control.name)
        if key not in state:
            state[key] = control.default
        values[control.name] = control.from_widget(state[key])
    return choice(problem, values)


def _controls(side: Any, chosen: Choice) -> None:
    """Draw the widgets of a choice."""
    side.selectbox(
        "problem", list(SUBJECTS), format_func=lambda n: SUBJECTS[n].label, key="problem"
    )
    for control in chosen.controls:
        off = chosen.usual_steps and control.name in ("step_size", "momentum")
        if control.name == "skipped":
            off = LATE_START not in chosen["modes"]
        _widget(side, control, _key(chosen.problem, control.name), off)


def _widget(side: Any, control: Control, key: str, off: bool) -> None:
    """Draw the widget of a control; the key of the session holds its value."""
    WIDGETS[type(control)](side, control, key, off)


def _slider(side: Any, control: Number, key: str, off: bool) -> None:
    digits = max(0, len(f"{control.step:g}".partition(".")[2]))
    side.slider(
        control.label,
        control.low,
        control.high,
        step=control.step,
        key=key,
        disabled=off,
        format=f"%.{digits}f",
    )


def _scale(side: Any, control: Scale, key: str, off: bool) -> None:
    side.select_slider(
        control.label, control.values, format_func=control.text, key=key, disabled=off
    )


def _word(side: Any, control: Word, key: str, off: bool) -> None:
    side.selectbox(control.label, control.words, key=key, disabled=off)


def _words(side: Any, control: Words, key: str, off: bool) -> None:
    side.multiselect(control.label, control.words, key=key, disabled=off)


def _flag(side: Any, control: Flag, key: str, off: bool) -> None:
    side.checkbox(control.label, key=key, disabled=off)


WIDGETS: Mapping[type[Control], Callable[..., None]] = {
    Number: _slider,
    Scale: _scale,
    Word: _word,
    Words: _words,
    Flag: _flag,
}


def _table(side: Any, chosen: Choice) -> tuple[str, str] | None:
    """Return the path of the reader's table and its target; None if none is asked for, or given.

    Raises
    ------
    ValueError
        If its first line cannot be read.
    """
    if not chosen.subject.reads_table or chosen["data"] != UPLOAD:
        return None
    given = side.file_uploader("your table (CSV, with a header line)", type=["csv"])
    if given is None:
        return None
    content = given.getvalue()
    names = column_names(content, given.name)
    target = side.selectbox("column to predict", names, index=len(names) - 1)
    return str(stored(content, given.name)), str(target)


def _first(st: Any, chart: tuple[str, Figure]) -> Any:
    """Show the first figure; return the place beside it."""
    left, right = st.columns([3, 2])
    _chart(left, *chart)
    return right


def _in_words(place: Any, notes: Iterable[str], said: Iterable[str]) -> None:
    """Show what the reader should know beforehand, and the verdicts."""
    place.subheader("In words")
    for note in notes:
        place.warning(literal(note))
    place.markdown("\n".join(f"- {literal(text)}" for text in said))


def _chart(place: Any, name: str, figure: Figure) -> None:
    place.plotly_chart(figure, key=name, config={"displaylogo": False, "responsive": True})


def _downloads(st: Any, data: Any) -> None:
    """Offer the data and the picture; each is made when it is asked for."""
    for column, (name, (kind, make)) in zip(st.columns(4), DOWNLOADS.items(), strict=True):
        column.download_button(
            name,
            data=lambda make=make: make(data),
            file_name=f"iterdiff.{SUFFIXES[name]}",
            mime=kind,
            on_click="ignore",
            key=f"download {name}",
        )


def _stored(st: Any, path: Path) -> None:
    """Show the results of a study: a slider for every axis of the grid, a list of the cases."""
    st.caption(literal(str(path)))
    try:
        data = opened(path)
        axes = grid_axes(data)
        if axes:
            chosen = [_place(st.sidebar, axis.name, axis.labels) for axis in axes]
            found = cell(data, tuple(chosen))
        else:
            [found] = cells(data)
    except ValueError as error:
        st.error(literal(str(error)))
        return
    if found.data is None:
        st.warning(literal(f"{found.label}: {found.status}. {found.cause}"))
        return
    labelled = dict(cases(found.data))
    label = st.sidebar.selectbox("case", list(labelled))
    judged = {case.label: case.verdicts for case in verdicts(found.data)}
    said = map(sentence, (*advice(labelled[label]), *judged[label]))
    charts = of_case(label, labelled[label])
    _in_words(_first(st, next(charts)), (), said)
    for chart in charts:
        _chart(st, *chart)
    _downloads(st, found.data)


def _place(side: Any, name: str, labels: tuple[str, ...]) -> int:
    """Return which value of an axis the reader chose."""
    places = range(len(labels))
    if len(labels) < 2:
        return 0
    values = [label.removeprefix(f"{name} = ") for label in labels]
    return side.select_slider(name, places, format_func=values.__getitem__, key=f"axis {name}")


if __name__ == "__main__":
    page(Path(sys.argv[1]) if len(sys.argv) > 1 else None)
