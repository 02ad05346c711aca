"""Score the offline trajectories.

Reads ``2_proposals`` and the two frozen models, writes ``3_scoring``: log-probabilities of every
trajectory under the reference and under the proposal, and its reward. Formula:
``log p(y | x) = sum_t log softmax(logits_t / T)[y_t]``, in nats, summed in float64.
"""
