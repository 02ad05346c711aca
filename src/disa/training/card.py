"""The model card: base, anchor, beta, reward, flags and what training logged last."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from disa.anchor import Anchor
from disa.anchor.hub import conditions_rows, flag_rows
from disa.runs.files import file_digest

TITLES = {
    "2605.17295": "DISA: Offline Importance Sampling for Distribution-Matching LLM-RL",
    "2509.15207": "FlowRL: Matching Reward Distributions for LLM Reasoning",
    "2505.20686": "Accelerating RL for LLM Reasoning with Optimal Advantage Regression",
    "2201.13259": "Trajectory balance: Improved credit assignment in GFlowNets",
    "2010.10436": "VarGrad: A Low-Variance Gradient Estimator for Variational Inference",
}
"""Of the papers that methods are of, by arXiv number; another paper is named by its number."""
LOGGED = {
    "reward": "mean reward of the last completions",
    "residual/rms": "root mean square of the residual, nats",
    "kl_to_target": "KL to the target, nats",
    "kl_to_reference": "KL to the reference, nats",
    "eps_audit": "audited error of log Z, nats",
    "loss": "loss",
}
"""What a card shows of the step log."""


def model_card(
    name: str,
    method: str,
    base: str,
    *,
    paper: str | None = None,
    rewards: Sequence[str] = (),
    anchor: Anchor | None = None,
    settings: Mapping[str, Any],
    logged: Mapping[str, Any],
    tags: Sequence[str] = (),
    dataset_name: str | None = None,
) -> str:
    """The text of a policy's README.

    A base that is a folder is not named; ``paper`` is an arXiv number, ``logged`` the last line of the step log.
    """
    from huggingface_hub import ModelCardData

    local = Path(base).exists()
    data = ModelCardData(
        library_name="transformers",
        tags=sorted({"disa", "trl", *tags}),
        base_model=None if local else base,
        datasets=dataset_name,
    )
    rows = {"method": method, "base": "a local model" if local else f"[{base}](https://huggingface.co/{base})"}
    rows |= {"reward": ", ".join(f"`{reward}`" for reward in rewards)} if rewards else {}
    rows |= {key: f"`{value}`" for key, value in settings.items()}
    lines = ["---", data.to_yaml(), "---", "", f"# {name}", ""]
    if paper:
        lines += [f"Trained as in [{TITLES.get(paper, f'arXiv {paper}')}](https://arxiv.org/abs/{paper}).", ""]
    lines += ["| | |", "| --- | --- |", *(f"| {key} | {value} |" for key, value in rows.items()), ""]
    if anchor is not None:
        digest = "" if anchor.path is None else f", digest `{file_digest(anchor.path / 'anchor.parquet')[:16]}`"
        lines += ["## Anchor", "", f"Frozen log Z of {len(anchor.estimates)} prompts{digest}.", ""]
        lines += ["| condition | value |", "| --- | --- |", *conditions_rows(anchor), ""]
        if flags := flag_rows(anchor):
            lines += ["| flag | prompts | meaning |", "| --- | --- | --- |", *flags, ""]
    if found := {LOGGED[key]: logged[key] for key in LOGGED if isinstance(logged.get(key), (int, float))}:
        lines += ["## Training, last logged step", "", "| | |", "| --- | --- |"]
        lines += [f"| {key} | {value:.4g} |" for key, value in found.items()] + [""]
    return "\n".join(lines)
