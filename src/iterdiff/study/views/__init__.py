"""Views of the dataset of a study: numbers, verdicts, report, figures, and a page."""
