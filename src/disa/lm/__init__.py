"""Operations on any causal language model: loading, sampling, log-probabilities; no stage is known here."""
