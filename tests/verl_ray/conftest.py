"""The run that is trained."""

from conversational import conversational_run  # noqa: F401
