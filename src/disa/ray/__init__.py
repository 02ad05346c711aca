"""Calibration on a Ray cluster: the parts of ``2_proposals`` and ``3_scoring``, made by Ray Data.

The stages are those of one machine. Their functions from a block of prompts or trajectories to rows travel to the nodes
(``workers``), the rows come back, and the process that started the run writes them (``backend``): only models, and
files that a recipe names, must be seen by every node.
"""
