"""Draw how the rooms fit: ``python docs/images/rooms.py`` writes rooms.svg beside itself."""

from pathlib import Path

ROOMS = [
    ("problem", "what is solved", "Minimization, RootFinding, …", "#0072B2"),
    ("algorithm", "how: a state, and one step", "GradientDescent, Newton, …", "#0072B2"),
    ("loop", "steps until a rule is satisfied", "Steps, ResidualBelow, …", "#0072B2"),
    ("mode", "how the answer is differentiated", "Implicit, Unrolled, Checked", "#B84A00"),
    ("accuracy", "how wrong the derivative is", "derivative_error, exceeds, …", "#00785A"),
]
WIDTH, ROW, BOX, LEFT = 440, 68, 124, 34
PICTURE = Path(__file__).with_suffix(".svg")


def row(index: int, name: str, meaning: str, names: str, colour: str) -> str:
    """Return the box of a room, and what is written beside it."""
    top = 16 + index * ROW
    return f"""
  <rect x="{LEFT}" y="{top}" width="{BOX}" height="42" rx="8" fill="{colour}"/>
  <text x="{LEFT + BOX / 2}" y="{top + 27}" text-anchor="middle" class="name">{name}</text>
  <text x="{LEFT + BOX + 16}" y="{top + 17}">{meaning}</text>
  <text x="{LEFT + BOX + 16}" y="{top + 36}" class="code">{names}</text>"""


def down(index: int) -> str:
    """Return the arrow from one box to the next."""
    x, top = LEFT + BOX / 2, 16 + index * ROW + 44
    return f'\n  <path d="M{x} {top} V{top + 20}" marker-end="url(#head)"/>'


def back(start: int, end: int) -> str:
    """Return the arrow from a box back to an earlier one."""
    low, high = (16 + index * ROW + 21 for index in (start, end))
    return f'\n  <path d="M{LEFT} {low} H12 V{high} H{LEFT - 5}" marker-end="url(#head)"/>'


def draw() -> str:
    """Return the picture."""
    height = 16 + len(ROOMS) * ROW
    boxes = "".join(row(index, *room) for index, room in enumerate(ROOMS))
    arrows = "".join(map(down, range(len(ROOMS) - 1))) + back(4, 2)
    return f"""<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}"
  width="{WIDTH}">
  <title>Problem, algorithm, loop, mode, accuracy; accuracy can keep the loop running</title>
  <style>
    text {{ font: 14px system-ui, "Segoe UI", "DejaVu Sans", sans-serif; fill: #222; }}
    .name {{ font-weight: bold; font-size: 16px; fill: #fff; }}
    .code {{ font: 12.5px ui-monospace, "DejaVu Sans Mono", monospace; fill: #555; }}
    path {{ fill: none; stroke: #555; stroke-width: 2; }}
  </style>
  <defs><marker id="head" viewBox="0 0 8 8" refX="6" refY="4" markerWidth="6" markerHeight="6"
    orient="auto"><path d="M0 0 L8 4 L0 8 Z" style="fill: #555; stroke: none"/></marker></defs>
  <rect width="{WIDTH}" height="{height}" rx="10" fill="#fff"/>{boxes}{arrows}
</svg>
"""


if __name__ == "__main__":
    PICTURE.write_text(draw(), encoding="utf-8")
    print(f"Wrote {PICTURE}")
