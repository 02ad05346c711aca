"""Measure models by their samples.

The stage of a run reads prompts, policies and the reference, and writes ``7_evaluation``; ``disa evaluate``
measures any model on any task by the same code, and ``disa judge`` the diversity of its correct solutions. Every metric
is first a value per prompt and then a mean over prompts, ``mean +- sd / sqrt(prompts)``.
"""
