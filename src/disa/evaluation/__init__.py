"""Measure models by their samples.

The stage of a run reads prompts, policies and the reference, and writes ``7_evaluation``; ``disa evaluate``
measures any model on any task, and ``disa judge`` the diversity of its correct solutions. Every metric is first a
value per problem and then a mean over problems, ``mean +- sd / sqrt(problems)``.
"""
