"""What a recipe will cost: tokens, floating-point operations, memory and time of every stage.

Reads a recipe and its model, writes nothing. Work is counted (``work``), the pace of this machine is measured by a
rehearsal of the real stages on a few prompts and steps (``rehearsal``), and a stated cluster's time is
``FLOPs / (GPUs x peak x utilisation)`` (``cluster``). Composes the stages, as ``pipeline.py`` does.
"""
