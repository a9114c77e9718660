"""The problems of the built-in studies, and the tables that regressions run on."""
