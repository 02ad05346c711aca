"""Two processes that train together give the loss curve of one: same global batch, same order, same rows."""

import collections

import pytest
from launched import launch
from small_trainer import SmallRun
from trl import GRPOTrainer

from disa.engine import read_step_log
from disa.training.config import TrainingConfig
from disa.training.run import run_training
from disa.rundir import StageFolder

STEPS = 3
TIMES = ("wall_time", "step_time")


def train(run_dir, folder, method, settings):
    """Train one method as the pipeline does, on-policy methods from stored completions."""
    from pathlib import Path

    small = SmallRun(Path(run_dir))
    by_prompt = collections.defaultdict(list)
    for row in small.trajectories:
        by_prompt[row.prompt_id].append(row)

    def stored(self, prompt_ids, *others, **options):
        # The k-th completion of a prompt at a step is the same stored one in whichever process asks for it.
        seen, found = collections.Counter(), []
        for ids in prompt_ids:
            rows = by_prompt[names[tuple(ids)]]
            found.append(rows[(self.state.global_step + 4 * seen[tuple(ids)]) % len(rows)].completion_ids)
            seen[tuple(ids)] += 1
        return found, None

    from disa.engine import load_tokenizer

    tokenizer = load_tokenizer(small.reference)
    names = {tuple(tokenizer(p.prompt)["input_ids"]): p.prompt_id for p in small.prompts}
    GRPOTrainer._generate_single_turn = stored
    config = TrainingConfig(**{
        "inverse_temperature": 2, "steps": STEPS, "prompts_per_step": 2, "completions_per_prompt": 4, "warmup_steps": 0,
        "value_samples": 4, "learning_rate": 0.01,
    } | settings)
    stage = StageFolder(Path(folder), "training", version=1, identity={}, inputs={})
    from disa import processes

    if processes.rank() == 0:
        stage.begin()
    processes.meet()
    wanted = {p.prompt_id for p in small.prompts}
    run_training(stage, method, config, small.recipe.sampling, small.task, small.prompts, small.reference,
                 small.anchor, [t for t in small.trajectories if t.prompt_id in wanted])


def curve(folder):
    return [{k: v for k, v in line.items() if k not in TIMES} for line in read_step_log(folder / "training/steps.jsonl")]


@pytest.mark.parametrize("method", ["disa_forward", "sft", "disa", "disa_both", "vargrad", "flowrl", "a2po", "grpo"])
def test_curve(method, finished_run, tmp_path):
    for count in (1, 2):
        assert launch(train, str(finished_run), str(tmp_path / str(count)), method, {}, count=count) == [0] * count
    one, two = (curve(tmp_path / str(count)) for count in (1, 2))
    print()
    for a, b in zip(one, two, strict=True):
        print({k: (a[k], b.get(k)) for k in a if a[k] != b.get(k)}, b.keys() ^ a.keys())
