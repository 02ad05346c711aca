"""Every Python block of README and docs/ is run, on small stand-ins for what it names; every command is parsed.

Those commands that need no cluster, server or download are run.
"""

import re
import runpy
import shlex
import shutil
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from disa.cli.main import _parser, main

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
# The README's script has a test of its own (test_readme.py); hooks of other engines are below.
BLOCKS = {
    (path.relative_to(ROOT).as_posix(), number): block
    for path in PAGES
    for number, block in enumerate(re.findall(r"^```python\n(.*?)^```", path.read_text("utf-8"), re.DOTALL | re.M))
    if path != ROOT / "README.md"
}
TESTED = {
    "docs/artefacts.md": 3,
    "docs/engines.md": 7,
    "docs/evaluation.md": 2,
    "docs/guides/choose_beta.md": 1,
    "docs/guides/tools.md": 1,
    "docs/python.md": 5,
    "docs/tasks.md": 1,
    "docs/verifiers-code.md": 1,
    "docs/verifiers-maths.md": 1,
}
"""Blocks per page that the tests below run."""


def test_no_block_is_without_a_test():
    assert Counter(page for page, _ in BLOCKS) == TESTED


@pytest.fixture
def ran(tmp_path, monkeypatch):
    """Run a block as a file, with names defined before it; its own names."""
    monkeypatch.chdir(tmp_path)

    def run(page, number, before="", replaced=("", ""), **given):
        path = tmp_path / "block.py"  # a reward's source is read from its file
        assert replaced[0] in BLOCKS[page, number]
        path.write_text(before + "\n" + BLOCKS[page, number].replace(*replaced))
        return runpy.run_path(str(path), given)

    return run


@pytest.fixture
def runs(finished_run, tmp_path):
    """The finished run under the name that pages give it."""
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "quickstart").symlink_to(finished_run)
    (tmp_path / "anchor").symlink_to(finished_run / "5_anchor")


def test_tables_are_read_as_the_page_on_artefacts_says(ran, runs, monkeypatch, tmp_path):
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    page = "docs/artefacts.md"
    rows, table, checked = ran(page, 0)["rows"], ran(page, 1)["table"], ran(page, 2)
    assert len(rows) == len(checked["rows"]) > 0
    assert table.num_rows == len(checked["anchor"].estimates) > 0


def test_an_anchor_moves_to_another_beta(ran, runs):
    found = ran("docs/guides/choose_beta.md", 0)
    assert found["sharper"].fingerprint.inverse_temperature == 5.0 != found["anchor"].fingerprint.inverse_temperature


ROWS = """
from datasets import Dataset

dataset = Dataset.from_list([{"prompt": f"{a}+{b}=", "answer": str(a + b)} for a in range(4) for b in range(2)])


def accuracy_reward(completions, answer, **columns):
    return [float(c.startswith(a)) for c, a in zip(completions, answer)]
"""


@pytest.mark.filterwarnings("ignore:.gradient_checkpointing:FutureWarning")  # the old name, in TRL 1.16
def test_two_calls_calibrate_and_train(ran, tmp_path):
    from disa.warmup.config import SmallModelConfig
    from disa.warmup.small_model import character_tokenizer, small_model

    tokenizer = character_tokenizer("0123456789+= ")
    for seed, name in enumerate(("Qwen2.5-1.5B-Instruct", "Qwen2.5-7B-Instruct")):
        size = SmallModelConfig(hidden_size=16, layers=1, heads=2, context_length=320)
        small_model(size, tokenizer, seed).save_pretrained(tmp_path / "Qwen" / name)
        tokenizer.save_pretrained(tmp_path / "Qwen" / name)
    found = ran("docs/python.md", 0, ROWS)
    assert len(found["anchor"].estimates) == 8 and found["trainer"].state.global_step > 0


def test_one_prompt_is_estimated_from_arrays_with_the_result_that_the_page_names(ran):
    est = ran("docs/python.md", 4)["est"]
    assert (f"{est.log_z:.3f}"[:4], f"{est.interval[0]:.3f}"[:4]) == ("1.67", "0.86")
    assert (est.interval[1], f"{est.hits_ess:.3f}"[:4]) == (3.0, "3.82")
    assert tuple(est.flags) == ("few_hits", "wide_interval")


def test_anchor_and_policy_go_to_the_hub_and_the_anchor_comes_back(ran, finished_run, monkeypatch):
    from huggingface_hub import HfApi

    import disa

    trainer, anchor = SimpleNamespace(push_to_hub=lambda: pushed.append("policy")), disa.Anchor.load(finished_run)
    pushed = []
    monkeypatch.setattr(HfApi, "create_repo", lambda self, name, **options: pushed.append(name))
    monkeypatch.setattr(HfApi, "upload_folder", lambda self, **options: "address")
    monkeypatch.setattr(HfApi, "snapshot_download", lambda self, name, **options: str(finished_run / "5_anchor"))
    found = ran("docs/python.md", 1, disa=disa, trainer=trainer, anchor=anchor)["anchor"]
    assert found.fingerprint == anchor.fingerprint and pushed == ["me/my-anchor", "policy"]


def test_tools_are_given_to_both_calls(ran, monkeypatch, tmp_path):
    monkeypatch.syspath_prepend(str(ROOT / "tests" / "calibration"))
    import tool_toy as toy

    import disa
    from disa.lm.hf_trainer import trainer_arguments

    toy.save(tmp_path / "reference")
    small = trainer_arguments(False, 1) | {"num_generations": 4, "per_device_train_batch_size": 20}
    own = {"processing_class": toy.tokenizer()}
    given = SimpleNamespace(  # the block's own calls, with the sizes of the toy
        calibrate=lambda **kw: disa.calibrate(**kw, **own),
        DISATrainer=lambda **kw: disa.DISATrainer(**kw, **own),
        CalibrationConfig=lambda f: disa.CalibrationConfig(f, num_generations=8, max_completion_length=toy.LIMIT),
        DISAConfig=lambda f: disa.DISAConfig(f, **small),
    )
    names = {"model": "reference", "reward": toy.reward, "dataset": toy.rows(), "calculator": toy.ask}
    found = ran("docs/guides/tools.md", 0, disa=given, **names)
    assert len(found["anchor"].estimates) == len(toy.rows()) and found["trainer"].tools == [toy.ask]


@pytest.mark.filterwarnings("ignore:'pin_memory':UserWarning")  # torch, where there is no accelerator
def test_the_anchors_trajectories_are_learned_from_offline(ran, tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "tests" / "calibration"))
    import tool_toy as toy

    import disa

    toy.save(tmp_path / "reference")
    args = disa.CalibrationConfig(str(tmp_path / "anchor"), num_generations=8, max_completion_length=toy.LIMIT)
    names = {"model": str(tmp_path / "reference"), "tokenizer": toy.tokenizer(), "dataset": toy.rows(), "disa": disa}
    anchor = disa.calibrate(names["model"], toy.reward, toy.rows(), args, processing_class=names["tokenizer"])
    found = ran("docs/python.md", 2, replaced=("max_steps=100", "max_steps=2"), anchor=anchor, **names)
    assert len(found["trajectories"]) == 40


@pytest.mark.filterwarnings("ignore:.gradient_checkpointing:FutureWarning")  # the old name, in TRL 1.16
def test_settings_of_evaluation_and_reports_are_taken(ran):
    import disa

    args = ran("docs/python.md", 3, disa=disa)["args"]
    assert args.metric_for_best_model == "eval_kl_to_target" and not args.greater_is_better and args.log_completions


def test_a_reward_leaves_rows_undecided(ran):
    reward = ran("docs/tasks.md", 0)["reward"]
    assert reward([], ["4 ", "5", "6"], ["4", "6", None]) == [1.0, 0.0, None] and reward.reward_range == (0.0, 1.0)


def test_answers_are_compared_as_the_page_says(ran):
    counts = ran("docs/verifiers-maths.md", 0)["verifier"].counts
    assert sorted(counts.values(), reverse=True)[:2] == [2, 1]


def test_programs_are_judged(ran, open_verifier):
    row = {"code": "def f(x): pass", "test_list": ["assert f(1) == 2"], "test_imports": []}
    pairs = [(row, "```python\ndef f(x):\n    return x + 1\n```"), (row, "```python\ndef f(x):\n    return x\n```")]
    verdicts = []
    looks = "    verdict.passed, ", "    seen.append(verdict.passed), "
    ran("docs/verifiers-code.md", 0, replaced=looks, pairs=pairs, seen=verdicts)
    assert verdicts == [True, False]


def test_a_served_model_answers_in_order(ran, monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "tests" / "evaluation"))
    from openai_server import OpenAIServer

    with OpenAIServer(lambda path, body: body["prompt"][::-1]) as server:
        replies = ran("docs/evaluation.md", 1, replaced=("http://localhost:8000/v1", server.url))["replies"]
    assert [reply.text for reply in replies] == ["= 2 + 2", "= 3 + 3"]


def test_samples_of_an_evaluation_are_read_as_rows(ran, run_copy, tmp_path):
    recipe, run = run_copy
    out = tmp_path / "evaluations" / "mine"
    reference = run / "warmup" / "reference"
    assert main(["evaluate", f"ours={reference}", "--recipe", str(recipe), "--output", str(out)]) == 0
    (task,) = (out / "samples").iterdir()
    task.rename(out / "samples" / "math500")
    found = ran("docs/evaluation.md", 0)
    assert len(found["rows"]) == 3 * 4 and found["values"]  # held-out prompts, samples of each


# Two groups of two completions of two tokens, log Z already in the reward.
LOG_PI = torch.tensor([[-1.0, -0.5], [-0.25, -2.0], [-1.5, -1.0], [-0.75, -0.125]], dtype=torch.float64)
LOG_REF = LOG_PI - torch.tensor([[0.5, 0.25], [-0.25, 0.125], [0.0, 0.5], [0.25, 0.25]], dtype=torch.float64)
REWARD = torch.tensor([1.0, -0.5, 0.75, 0.25], dtype=torch.float64)
GROUP = torch.tensor([0, 0, 1, 1])
MASK = torch.ones_like(LOG_PI)


def advantage(group=GROUP):
    import disa

    zero, kl = torch.zeros(4, dtype=torch.float64), (LOG_PI - LOG_REF).sum(dim=1)
    return disa.advantages(log_z=zero, log_pi=kl, log_ref=zero, reward=REWARD, beta=1.0, group=group)


def hook(number, **given):
    import disa

    names = {"disa": disa, "torch": torch} | given
    exec(BLOCKS["docs/engines.md", number], names)
    return names


def test_the_plain_call_gives_one_advantage_per_completion():
    anchor = SimpleNamespace(
        log_z=lambda ids: torch.zeros(4, dtype=torch.float64), fingerprint=SimpleNamespace(inverse_temperature=1.0)
    )
    found = hook(
        0, anchor=anchor, prompt_ids=GROUP, log_pi=LOG_PI.sum(1), log_ref=LOG_REF.sum(1), reward=REWARD, group=GROUP
    )["advantage"]
    torch.testing.assert_close(found, advantage(), rtol=0, atol=1e-14)  # the same sums in another order


def test_tinkers_loss_weighs_each_completion_by_its_advantage():
    data = [SimpleNamespace(loss_fn_inputs={"mask": SimpleNamespace(to_torch=lambda m=m: m)}) for m in MASK]
    tokens = LOG_PI.clone().requires_grad_()
    given = {"log_z": torch.zeros(4, dtype=torch.float64), "log_ref": LOG_REF.sum(1), "reward": REWARD, "beta": 1.0}
    loss, _ = hook(1, **given, group=GROUP)["loss"](data, list(tokens))
    loss.backward()
    torch.testing.assert_close(tokens.grad, -advantage()[:, None].expand(4, 2) / 4, rtol=0, atol=1e-14)


def test_slime_gets_advantages_per_token_times_the_length():
    data = {
        "log_probs": list(LOG_PI),
        "ref_log_probs": list(LOG_REF),
        "rewards": REWARD.tolist(),
        "loss_masks": list(MASK),
    }
    hook(2)["advantages"](None, data)
    torch.testing.assert_close(torch.stack(data["advantages"]), 2 * advantage(None)[:, None].expand(4, 2))


def test_skyrl_gets_advantages_per_token_times_the_length():
    import numpy

    # SkyRL has taken the penalty off the rewards.
    rewards = torch.zeros_like(LOG_PI)
    rewards[:, 1] = REWARD
    rewards -= LOG_PI - LOG_REF
    registered = hook(3, np=numpy, register_advantage_estimator=lambda name: lambda function: function)["advantages"]
    rows, _ = registered(rewards, MASK, numpy.array(["a", "a", "b", "b"]))
    torch.testing.assert_close(rows, 2 * advantage()[:, None].expand(4, 2), rtol=0, atol=1e-14)


def test_nemo_rl_gets_advantages_per_token_times_the_length():
    found = hook(4)["Advantages"]().compute_advantage(
        GROUP[:, None], REWARD, MASK, logprobs_policy=LOG_PI, logprobs_reference=LOG_REF
    )
    torch.testing.assert_close(found, 2 * advantage()[:, None].expand(4, 2), rtol=0, atol=1e-14)


def test_openrlhf_gets_advantages_per_token_and_no_second_penalty():
    e = SimpleNamespace(rewards=REWARD, kl=LOG_PI - LOG_REF, action_mask=MASK, info={})
    hook(5)["compute_advantages_and_returns"](None, [e])
    torch.testing.assert_close(e.advantages, advantage(None)[:, None].expand(4, 2), rtol=0, atol=1e-14)
    assert e.kl is None


def test_prime_rl_sums_advantages_times_log_probabilities():
    inputs = SimpleNamespace(
        loss_mask=MASK.bool(), advantages=advantage()[:, None].expand(4, 2), trainer_logprobs=LOG_PI
    )
    given = {"LossOutputs": lambda **values: SimpleNamespace(**values)}
    found = hook(6, **given)["loss"](inputs).loss
    torch.testing.assert_close(found, -(advantage() * LOG_PI.sum(1)).sum(), rtol=0, atol=1e-14)


# Commands ------------------------------------------------------------------------------------------------------------


def commands():
    """Command lines of blocks without a language, continued lines joined, explanations behind two spaces left out."""
    for path in PAGES:
        for block in re.findall(r"^```\n(.*?)^```", path.read_text("utf-8"), re.DOTALL | re.M):
            for line in block.replace("\\\n", " ").splitlines():
                line = re.split(r"\s{3,}(?=[a-zA-Z#])|\s+#\s", line.strip() if "--" not in line[:2] else line)[0]
                for one in re.split(r"\s*&\s*", re.sub(r"^(accelerate|torchrun) .* -m (?=disa )", "", line)):
                    if re.match(r"disa [a-z]", one) and not re.search(r"[][|]|\.\.\.", one):
                        yield path.relative_to(ROOT).as_posix(), " ".join(one.split())


COMMANDS = sorted(set(commands()))
NEEDS = {"--on ray": "ray", "disa verl": "verl", "openai:": "a server", "org/model": "a hub", "--task math500": "data"}
"""Commands that only a cluster, a server or a download can run: they are parsed here, and run in tests of their own."""


def test_there_are_commands_on_many_pages():
    assert len(COMMANDS) > 30 and len({page for page, _ in COMMANDS}) > 8


@pytest.mark.parametrize(("page", "line"), COMMANDS)
def test_a_command_is_understood_and_names_recipes_that_exist(page, line):
    options = _parser().parse_args(shlex.split(line)[1:])
    assert options.command
    assert [name for name in re.findall(r"recipes/\S+\.yaml", line) if not (ROOT / name).is_file()] == []


@pytest.fixture
def elsewhere(run_copy, tmp_path, monkeypatch, capsys):
    """A folder in which the names that pages use stand for the tiny recipe and its run."""
    recipe, run = run_copy
    monkeypatch.chdir(tmp_path)
    (tmp_path / "recipes").mkdir()
    for name in ("RECIPE.yaml", "recipes/quickstart.yaml"):
        shutil.copy(recipe, name)
    (tmp_path / "runs").mkdir()
    for name in ("RUN", "runs/quickstart"):
        (tmp_path / name).symlink_to(run)
    (tmp_path / "anchor").symlink_to(run / "5_anchor")

    def command(line):
        code = main(shlex.split(line)[1:])
        assert code == 0, capsys.readouterr().err
        return capsys.readouterr().out

    return command


LOCAL = re.compile(
    r"^disa (\S+) (RECIPE\.yaml|RUN|recipes/quickstart\.yaml|runs/quickstart|anchor)( .*)?$|^disa schema$"
)
RUN_HERE = [
    pytest.param(line, marks=pytest.mark.slow if "--set" in line or line.startswith("disa plan") else [])
    for line in sorted({line for _, line in COMMANDS})
    if LOCAL.match(line) and not any(need in line for need in NEEDS) and not re.match(r"disa (compare|study)", line)
]


@pytest.mark.parametrize("line", RUN_HERE)
def test_a_command_does_its_work(line, elsewhere):
    output = elsewhere(line + " --once" if line.startswith("disa watch") else line)
    assert output.strip()


def test_the_first_run_by_command_goes_from_a_file_to_a_report(elsewhere, tmp_path, little_model):
    """docs/guides/first_run.md, line by line; only the lengths are cut to what an untrained model needs."""
    shutil.copytree(little_model, tmp_path / "MODEL")
    rows = [f'{{"prompt": "{a}+{b}=", "answer": "{a + b}"}}' for a in range(4) for b in range(6)]
    (tmp_path / "rows.jsonl").write_text("\n".join(rows))
    lines = [line for page, line in commands() if page.endswith("first_run.md")]
    assert [line.split()[1] for line in lines] == ["init", "check", "plan", "run", "inspect", "run"]
    for line in lines:
        elsewhere(line)
        if " init " in line:
            text = (tmp_path / "mine.yaml").read_text()
            for old, new in {
                "max_completion_length: 1024": "max_completion_length: 4",
                "conversational: true": "conversational: false",
                r"  steps: \d+": "  steps: 2",
                r"warmup_steps: \d+": "warmup_steps: 1",
                r"prompts_per_step: \d+": "prompts_per_step: 2",
                r"micro_batch: \d+": "micro_batch: 2",
                r"completions_per_prompt: \d+": "completions_per_prompt: 2",
                r"train_prompts: \d+": "train_prompts: 2",
            }.items():
                text, count = re.subn(old, new, text)
                assert count == 1, old
            (tmp_path / "mine.yaml").write_text(text)
    assert (tmp_path / "runs" / "mine" / "8_report" / "report.html").is_file()
