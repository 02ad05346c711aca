"""Verifiers shared by tasks. Model text is hostile: it is parsed, never evaluated."""
