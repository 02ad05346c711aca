"""Hours that a recipe's comparison needs on two cores, stage by stage, from the processor seconds of a few batches.

``disa plan`` rehearses every stage of one run. Here one batch is drawn, scored and trained on by the reference alone,
in processor seconds of one thread, which other work on the machine disturbs less than a clock. A comparison's search,
seeds and equal budgets are counted. The proposal's passes count by its number of weights::

    OMP_NUM_THREADS=1 python benchmarks/hours.py recipes/mbpp-qwen.yaml --set models.reference=FOLDER ...

Rewards, start-up and waiting for each other are left out, so these hours are the least it may take.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from peft import LoraConfig, get_peft_model

from disa.comparison.budget import equal_budgets
from disa.comparison.config import ComparisonConfig, point_training
from disa.lm.loading import empty_model, load_model, load_tokenizer
from disa.lm.log_probs import PackedCompletions, sequence_log_probs, token_log_probs
from disa.lm.sampler import draw_rows, uniforms
from disa.lm.sampling_config import encode_prompt
from disa.partition.pilot import passes_per_token
from disa.recipe import Recipe, load_recipe, read_section
from disa.tasks import make_task
from disa.training.config import TrainingConfig
from disa.training.methods import METHODS
from page import fill, table

CORES = 2


class Pace(NamedTuple):
    """Processor seconds of one completion."""

    draw: float
    score: float
    train: float
    """Forward and backward through adapters."""
    tokens: float
    """Of a completion, mean."""


def timed(work: Callable[[], Any]) -> tuple[Any, float]:
    """A result and the processor seconds it took."""
    start = time.process_time()
    return work(), time.process_time() - start


def measure(recipe: Recipe, prompts: list[Any]) -> Pace:
    """Draw, score and train on one batch of real prompts."""
    given = recipe.models.reference
    assert given
    model, tokenizer = load_model(given), load_tokenizer(given)
    count, group = recipe.proposals.batch_size, recipe.proposals.per_prompt
    chosen = prompts[: max(1, count // group)]
    ids = [encode_prompt(tokenizer, p.prompt, recipe.sampling) for p in chosen for _ in range(group)]
    limit = recipe.sampling.max_completion_length
    numbers = np.stack([uniforms(0, p.prompt_id, "reference", n, limit) for p in chosen for n in range(group)])
    how = {"temperature": recipe.sampling.temperature}
    draws, drawing = timed(lambda: draw_rows(model, tokenizer, ids, numbers, **how))
    rows = [draw.completion_ids for draw in draws]
    _, scoring = timed(lambda: sequence_log_probs(model, ids, rows, **how))
    lora = recipe.training.lora
    policy = get_peft_model(model, LoraConfig(r=lora.rank, target_modules=lora.target_modules)) if lora else model
    part = recipe.training.micro_batch or len(rows)

    def step() -> None:
        batch = PackedCompletions(ids[:part], rows[:part], model.device)
        token_log_probs(policy.get_base_model() if lora else policy, batch, **how)[0].sum().backward()

    step()  # what is set up once
    _, training = timed(step)
    return Pace(drawing / len(rows), scoring / len(rows), training / part, float(np.mean([len(row) for row in rows])))


def stages(recipe: Recipe, counts: dict[str, int], pace: Pace, size: float, source: str) -> list[tuple[str, float]]:
    """Processor seconds by stage, search and seeds included."""
    config, evaluation = recipe.proposals, recipe.evaluation
    comparison = read_section(ComparisonConfig, recipe.comparison or {}, "recipe", "comparison")
    streams = passes_per_token(source, size)
    own = size if source == "proposal" else streams
    drawn = counts["train"] * config.per_prompt
    others = (counts["validation"] + counts["heldout"]) * config.per_heldout_prompt
    share = config.reference_share
    found = [("proposals", (drawn + others) * pace.draw * (share + (1 - share) * own))]
    found += [("scoring", (drawn + others) * pace.score * streams)]
    pilot = config.pilot.prompts * config.pilot.draws if config.source == "auto" else 0
    # Drawn by reference, proposal, bridge, hint and temperature; all five pools scored under all five laws.
    found += [("pilot", pilot * (pace.draw * (5 + 2 * size) + 5 * pace.score * (5 + 2 * size)))]

    judged = (counts["heldout"] + min(evaluation.train_prompts, counts["train"])) * evaluation.samples_per_prompt
    judging = judged * (pace.draw + 2 * pace.score)
    found += [("evaluation of the reference", judging)]
    trainings = {method: recipe.training.model_copy(update={"methods": (method,)}) for method in comparison.methods}
    reads = {m: drawn if METHODS[m].anchor or METHODS[m].reads == "all" else 0 for m in comparison.methods}
    budgets = equal_budgets(trainings, reads, equal=comparison.budget)
    for method, budget in budgets.items():
        points = comparison.points(method)
        steps = [_step(method, point_training(trainings[method], method, point), budget, pace) for point in points]
        looked = counts["validation"] * evaluation.samples_per_prompt * (pace.draw + 2 * pace.score)
        search = sum((comparison.search.steps or budget.steps) * step + looked for step in steps)
        search = search if len(points) > 1 else 0.0
        each = budget.steps * max(steps) + judging  # the dearest point may be chosen
        found.append((f"{method}: search", search))
        found.append((f"{method}: {len(comparison.seeds)} seeds", len(comparison.seeds) * each))
    return found


def _step(method: str, training: TrainingConfig, budget: Any, pace: Pace) -> float:
    """One batch: drawn, scored by the reference where the method reads it, and trained on as often as it is used."""
    reference = pace.score if METHODS[method].reference else 0.0
    trained = (budget.drawn_per_step + budget.stored_per_step) * training.method_uses(method) * pace.train
    return budget.drawn_per_step * (pace.draw + reference) + trained


def main() -> None:
    """Measure, count, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipe")
    parser.add_argument("--set", action="append", default=[], dest="overrides", metavar="STAGE.KEY=VALUE")
    parser.add_argument("--source", default="bridge", help="what a pilot is taken to choose (bridge)")
    parser.add_argument("--page", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(1)
    recipe = load_recipe(options.recipe, options.overrides)
    task = make_task(recipe.tasks)
    prompts = {split: task.prompts(split) for split in ("train", "validation", "heldout")}
    pace = measure(recipe, prompts["train"])
    models = recipe.models
    with torch.device("meta"):
        weights = [
            empty_model(path).num_parameters() for path in (models.reference, models.proposal or models.reference)
        ]
    source = recipe.proposals.source if recipe.proposals.source != "auto" else options.source
    counts = {split: len(rows) for split, rows in prompts.items()}
    found = stages(recipe, counts, pace, weights[1] / weights[0], source)
    rows = [[name, f"{seconds / 3600 / CORES:.1f}"] for name, seconds in found]
    rows.append(["total", f"{sum(seconds for _, seconds in found) / 3600 / CORES:.1f}"])
    said = (
        f"`{options.recipe}`, proposals from `{source}`. Processor seconds per completion, of {pace.tokens:.0f} tokens "
        f"on average, on one thread: drawn {pace.draw:.2f}, scored {pace.score:.2f}, trained on {pace.train:.2f}."
    )
    text = "\n".join([*table(["stage", f"hours on {CORES} cores"], rows), "", said])
    print(text)
    if options.page:
        fill(f"hours-{Path(options.recipe).stem}", text, options.page)


if __name__ == "__main__":
    main()
