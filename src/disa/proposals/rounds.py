"""Rounds of further draws: where everything drawn so far leaves log Z uncertain, more is drawn.

A round's folder lies within ``2_proposals`` and its scores within ``3_scoring``. Both belong to the scoring stage, as a
round's draws depend on the rewards of those before it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from disa.lm.models import Models
from disa.lm.sampling_config import SamplingConfig
from disa.proposals.config import DrawPlan, ProposalsConfig
from disa.proposals.run import VERSION, draw_trajectories
from disa.runs.folders import StageFolder, read_json, write_json
from disa.runs.records import Prompt
from disa.runs.stage import Stage
from disa.tasks import Task


def round_stage(
    number: int,
    config: ProposalsConfig,
    sampling: SamplingConfig,
    task: Task,
    models: Models,
    prompts: Callable[[], list[Prompt]],
    inputs: dict[str, StageFolder],
    target: dict[str, Any],
    plan: Callable[[], DrawPlan],
    say: Callable[[str], None],
) -> Stage:
    """Describe one round.

    ``inputs`` are what the first draws read, and all earlier scores; ``target`` holds further settings that the plan
    depends on.
    """

    def work(stage: StageFolder) -> None:
        wanted, known = _written_down(stage, plan), prompts()
        chosen = [p for p in known if any(wanted.get(p.prompt_id, {}).values())]
        more = sum(len(draws) for p in chosen for draws in wanted[p.prompt_id].values())
        say(f"{stage.name}: {more} more trajectories for {len(chosen)} of {len(known)} prompts")
        if chosen:
            draw_trajectories(stage, config, sampling, task, models, chosen, wanted)
        else:
            stage.finish(trajectories=0, prompts=0)

    identity = {"proposals": config.identity(), "sampling": sampling.identity(), "round": number} | target
    return Stage("scoring", f"2_proposals/round-{number}", VERSION, identity, inputs, work, by="parts")


def _written_down(stage: StageFolder, plan: Callable[[], DrawPlan]) -> DrawPlan:
    """The plan, in a file before its first draw is made: a killed round goes on with the same."""
    path = stage.path / "allocation.json"
    if not path.is_file():
        write_json(path, {i: {s: [r.start, r.stop] for s, r in draws.items()} for i, draws in plan().items()})
    return {i: {s: range(*ends) for s, ends in draws.items()} for i, draws in read_json(path).items()}
