"""Ways to pick a token, for evaluation only: greedy, and from the nucleus.

The nucleus is the smallest set of most likely tokens with probability at least ``top_p`` (Holtzman et al.,
arXiv 1904.09751). ``disa.lm.sampler`` draws with them as it draws from the whole distribution: by inversion at the
trajectory's own uniform numbers.
"""

from __future__ import annotations

import torch


def pick_in_nucleus(
    scores: torch.Tensor, u: torch.Tensor, temperature: float, *, top_p: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """Each row's most likely token at temperature 0, else that at its number within the nucleus.

    ``u`` holds uniform numbers in [0, 1). Returns tokens and their log-probabilities under the cut distribution
    (float64, nats), each of shape (rows,).
    """
    if temperature == 0:
        return scores.argmax(dim=-1), torch.zeros(len(scores), dtype=torch.float64, device=scores.device)
    p = torch.softmax(scores.double() / temperature, dim=-1)
    ids, p = nucleus(p, top_p) if top_p < 1 else (None, p)
    cumulative = p.cumsum(dim=-1)
    total = cumulative[:, -1:]
    # right: the first token whose cumulative probability exceeds u, so never one of probability 0.
    at = torch.searchsorted(cumulative, u[:, None] * total, right=True).clamp(max=p.shape[-1] - 1)
    token = at if ids is None else ids.gather(1, at)
    return token.squeeze(1), (p.gather(1, at) / total).log().squeeze(1)


def nucleus(p: torch.Tensor, top_p: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Tokens that may be in the nucleus, in order, and their probabilities, 0 outside it; not normalised again.

    Of equal probabilities the lower token comes first. Tokens of at most ``(1 - top_p) / tokens`` have together at most
    ``1 - top_p``, so none of them is inside: of a large vocabulary few are left to be sorted. Half of that allows for
    rounding. Both have shape (rows, most candidates of a row); rows with fewer are filled with token 0 of probability
    0.
    """
    candidates = p > 0.5 * (1 - top_p) / p.shape[-1]
    row, token = candidates.nonzero(as_tuple=True)
    counts = candidates.sum(dim=-1)
    place = torch.arange(len(row), device=p.device) - (counts.cumsum(0) - counts)[row]
    ids = token.new_zeros(len(p), int(counts.max()))
    ids[row, place] = token
    kept = p.gather(1, ids) * (torch.arange(ids.shape[1], device=p.device) < counts[:, None])
    ordered, order = kept.sort(dim=-1, descending=True, stable=True)
    # A token belongs to the nucleus while those before it have not reached top_p: the first one always does.
    inside = ordered.cumsum(dim=-1) - ordered < top_p
    return ids, torch.zeros_like(kept).scatter(1, order, torch.where(inside, ordered, 0.0))
