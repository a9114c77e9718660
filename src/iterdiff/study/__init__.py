"""Studies: a grid of runs as one dataset, and its views (tables, figures, pages)."""
