"""The colours of every view: the palette of Okabe and Ito, safe for colour-blind readers."""

BLACK, GREY = "#000000", "#7F7F7F"
ORANGE, SKY, GREEN = "#E69F00", "#56B4E9", "#009E73"
BLUE, VERMILION, PURPLE = "#0072B2", "#D55E00", "#CC79A7"

CYCLE = (VERMILION, BLUE, GREEN, PURPLE, ORANGE, SKY)
"""Colours of modes or algorithms, in this order."""
