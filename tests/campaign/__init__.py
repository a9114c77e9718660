"""A hostile campaign: thousands of calls that should not end in a wrong number.

`make campaign` makes every call of the families below in processes of their own, judges what comes
out, and stores the table of ``docs/promises.md``. The calls are the same in every run.
"""
