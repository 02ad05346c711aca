"""The command line: one thin file per command.

Reads a recipe, writes what the stages write. Exit codes: 0 done, 2 the user can fix it, 1 a bug.
"""
