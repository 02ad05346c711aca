"""How results are shown: a table as text, Markdown or HTML, figures, and the one page that every command writes.

Below all stages: what is shown comes in as text and numbers. Only ``figures`` loads matplotlib.
"""
