"""Draw the offline trajectories.

Reads ``1_tasks`` and two frozen models, writes ``2_proposals``: for every prompt a fixed share of
draws from the reference and the rest from the proposal, each with the log-probability its sampler
gave it. Formula: y ~ alpha pi_ref + (1 - alpha) mu, stratified.
"""
