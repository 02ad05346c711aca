"""Methods side by side: the same tasks, prompts, sampler, budget and evaluation; only the method differs.

Reads the shared stages of a run, ``1_tasks`` to ``5_anchor``, and writes ``comparison/``: one folder for every
(method, point of its search, seed), each trained and evaluated on its own, then table, figures and one page.
"""
