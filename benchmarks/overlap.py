"""What proposals are worth on real prompts: D, and the error of log Z at equal cost, against many reference draws.

For some training prompts of a recipe, the truth is the reward of many reference draws. Pools of every source that the
recipe allows (``disa.partition.pilot``) are drawn beside them, and every candidate's estimates are made of subsets of
the pools, as many draws as the budget pays::

    python benchmarks/overlap.py recipes/mbpp-qwen.yaml --set models.reference=FOLDER --set models.proposal=FOLDER

Draws are kept in ``RUN_DIR/overlap`` prompt by prompt: the same command goes on after a kill. ``--page`` writes the
table into a page's block of the recipe's name. Rewards of 0 and 1 only.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from disa.config import StageConfig
from disa.lm.models import FrozenModels, Models
from disa.partition import estimate_log_partition_batch
from disa.partition.log_weights import log_z_from_q
from disa.partition.pilot import PilotCandidate, pilot_candidates, possible_sources, score_under
from disa.proposals.blends import BlendEngine
from disa.proposals.run import run_proposals
from disa.recipe import Recipe, load_recipe
from disa.runs.folders import StageFolder
from disa.runs.records import Prompt, Trajectory
from disa.tasks import make_task
from disa.tasks.checked_rewards import checked_rewards
from page import fill, table

Array = NDArray[np.float64]
TRUTH_SEED, POOL_SEED = 10_001, 20_002


class Sizes(StageConfig):
    """How much is drawn."""

    prompts: int = 16
    truth: int = 512
    """Reference draws of each prompt, for the truth alone."""
    pool: int = 64
    """Draws of each prompt and source, from which estimates are made."""
    budget: int = 16
    """The cost of so many reference draws is what an estimate may cost."""
    repeats: int = 200
    """Estimates of each candidate, from other subsets of the pools."""
    most_scored: int = 8
    """Successes of the truth, per prompt, that D is measured on."""


def draw_pool(
    recipe: Recipe,
    name: str,
    role: str,
    count: int,
    variant: Any,
    law: Any,
    models: Models,
    here: FrozenModels,
    prompts: list[Prompt],
) -> list[Trajectory]:
    """Draw a pool, or go on with it, or read it."""
    config = variant.model_copy(update={"prompts_per_part": 1})
    identity = {"proposals": config.identity(), "sampling": recipe.sampling.identity(), "count": count, "role": role}
    identity |= models.identity("reference", "proposal") | {"prompts": [prompt.prompt_id for prompt in prompts]}
    stage = StageFolder(recipe.run_dir, f"overlap/{name}", version=1, identity=identity, inputs={})
    if not stage.finished:
        stage.begin()
        tokenizer = models.tokenizer()
        engines = {"proposal": BlendEngine(law, here, tokenizer, recipe.sampling, config)} if law else {}
        other = "reference" if role == "proposal" else "proposal"
        plan = {p.prompt_id: {role: range(count), other: range(0)} for p in prompts}
        run_proposals(stage, config, recipe.sampling, prompts, here, tokenizer, plan, engines)
    return stage.rows(Trajectory)


def measured(
    candidate: PilotCandidate,
    log_ref: Array,
    source: Sequence[str],
    rewards: Array,
    prompt: NDArray[np.intp],
    truth: Array,
    beta: float,
    sizes: Sizes,
    from_source: str,
) -> Array:
    """Squared error of log Z, mean over repeats, shape (prompts,)."""
    draws = max(1, round(sizes.budget * 2.0 / candidate.cost))
    of_reference = draws if candidate.log_mu is None else max(1, round(candidate.reference_share * draws))
    wanted = {"reference": of_reference} | ({from_source: draws - of_reference} if draws > of_reference else {})
    rng, total = np.random.default_rng(0), np.zeros(len(truth))
    places = {
        (p, s): np.flatnonzero((prompt == p) & (np.array(source) == s)) for p in range(len(truth)) for s in wanted
    }
    for _ in range(sizes.repeats):
        chosen = np.concatenate(
            [rng.choice(found, min(wanted[s], len(found)), replace=False) for (_, s), found in places.items()]
        )
        batch = estimate_log_partition_batch(
            rewards[chosen],
            prompt_index=prompt[chosen],
            n_prompts=len(truth),
            log_ref=log_ref[chosen],
            log_proposal=None if candidate.log_mu is None else candidate.log_mu[chosen],
            from_reference=np.array([source[i] == "reference" for i in chosen]),
            beta=beta,
            reward_range=(0.0, 1.0),
        )
        total += (np.asarray(batch.log_z) - truth) ** 2
    return total / sizes.repeats


def main() -> None:
    """Draw, score, compare, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipe")
    parser.add_argument("--set", action="append", default=[], dest="overrides", metavar="STAGE.KEY=VALUE")
    for name, field in Sizes.model_fields.items():
        parser.add_argument(f"--{name.replace('_', '-')}", type=int, default=field.default)
    parser.add_argument("--page", type=Path)
    options = vars(parser.parse_args())
    recipe = load_recipe(options["recipe"], options["overrides"])
    sizes = Sizes(**{name: options[name] for name in Sizes.model_fields})
    task, sampling, config = make_task(recipe.tasks), recipe.sampling, recipe.proposals
    assert recipe.models.reference, "a recipe that names its models"
    models = Models(recipe.models.reference, recipe.models.proposal, made_here=False)
    prompts = task.prompts("train")[: sizes.prompts]
    here = models.load(together=True)
    laws, _ = possible_sources(config, sampling, task, models, prompts, seed=POOL_SEED)
    plain = config.model_copy(update={"source": "proposal", "seed": TRUTH_SEED})
    truth = draw_pool(recipe, "truth", "reference", sizes.truth, plain, None, models, here, prompts)
    pools = {"reference": (plain.model_copy(update={"seed": POOL_SEED}), None)} | laws
    rows, source = [], []
    for name, (variant, law) in pools.items():
        role = "reference" if name == "reference" else "proposal"
        found = draw_pool(recipe, f"pool-{name}", role, sizes.pool, variant, law, models, here, prompts)
        rows, source = rows + found, source + [name] * len(found)

    def judged(trajectories: list[Trajectory]) -> Array:
        by_id = {p.prompt_id: p for p in prompts}
        asked = [by_id[row.prompt_id] for row in trajectories]
        found = checked_rewards(task, asked, [row.completion for row in trajectories])
        return np.array([np.nan if reward is None else reward for reward in found], dtype=np.float64)

    index = {p.prompt_id: i for i, p in enumerate(prompts)}
    number = np.array([index[row.prompt_id] for row in truth])
    reward = judged(truth)
    decided = ~np.isnan(reward)
    hits = np.bincount(number[decided], reward[decided], minlength=len(prompts))
    q = (hits + 0.5) / (np.bincount(number[decided], minlength=len(prompts)) + 1)
    beta = recipe.training.inverse_temperature
    log_z = log_z_from_q(q, beta, (0.0, 1.0))

    solved = [np.flatnonzero((number == p) & (reward == 1))[: sizes.most_scored] for p in range(len(prompts))]
    successes = [truth[i] for found in solved for i in found]
    own_ref, own_parts = score_under(laws, successes, prompts, sampling, models, here) if successes else ([], {})
    divergence = {}
    if successes:
        of = np.array([index[row.prompt_id] for row in successes])
        for one in pilot_candidates(config, laws, own_parts, here, models.has_proposal):
            ratio = np.zeros(len(of)) if one.log_mu is None else own_ref - one.log_mu
            per_prompt = np.bincount(of, ratio, minlength=len(prompts))[hits > 0] / np.bincount(of)[np.unique(of)]
            divergence[one.name] = per_prompt - np.log(q[hits > 0])

    rewards = judged(rows)
    kept = np.flatnonzero(~np.isnan(rewards))
    rows, source, rewards = [rows[i] for i in kept], [source[i] for i in kept], rewards[kept]
    prompt = np.array([index[row.prompt_id] for row in rows])
    log_ref, parts = score_under(laws, rows, prompts, sampling, models, here)
    lines = []
    for one in pilot_candidates(config, laws, parts, here, models.has_proposal):
        from_source = one.settings["source"] if one.log_mu is not None else "reference"
        own = measured(one, log_ref, source, rewards, prompt, log_z, beta, sizes, from_source)
        share = rewards[np.array(source) == from_source].mean()
        mean, error = own.mean(), own.std(ddof=1) / np.sqrt(len(own))
        d = divergence.get(one.name, np.array([np.nan]))
        of_mean = f"{d.mean():.2f} ± {d.std(ddof=1) / np.sqrt(len(d)) if len(d) > 1 else float('nan'):.2f}"
        rmse = f"{np.sqrt(mean):.3f} ± {error / (2 * np.sqrt(mean)):.3f}"
        lines.append([one.name, of_mean, f"{share:.2f}", f"{one.cost:.1f}", round(sizes.budget * 2 / one.cost), rmse])
    heading = ["candidate", "D, nats", "solved", "passes per token", "draws", "RMSE of log Z"]
    said = (
        f"`{options['recipe']}`: {len(prompts)} prompts, truth from {sizes.truth} reference draws each, of which they "
        f"solve {np.mean(hits / sizes.truth):.2f}; {(hits == 0).sum()} prompts without a solution. Budget: the cost of "
        f"{sizes.budget} reference draws. beta {beta:g}; {sizes.repeats} subsets of pools of {sizes.pool}; standard "
        "errors over prompts. D includes -log q, which the reference has itself. `solved` is the share of the source's "
        "whole pool."
    )
    text = "\n".join([*table(heading, lines), "", said])
    print(text)
    if options["page"]:
        fill(f"overlap-{Path(options['recipe']).stem}", text, options["page"])


if __name__ == "__main__":
    main()
