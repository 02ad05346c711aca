"""Tiny twins of the recipes for maths and code: the same tasks, prompts, proposals and methods, from start to report.

The twins' models know whole answers as single tokens, so that random weights solve some prompts.
"""

import json
from pathlib import Path

import pytest
import torch
import yaml
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast, Qwen2Config, Qwen2ForCausalLM

from disa.pipeline import Pipeline
from disa.recipe import load_recipe
from disa.runs.folders import read_json
from disa.runs.records import Prompt, ScoredTrajectory, read_rows
from disa.tasks import dataset as dataset_task

SOLVED = "```python\ndef double(x):\n    return 2 * x\n```"
ANSWERS = ["\\boxed{4}", "\\boxed{6}", SOLVED, "```python\ndef double(x):\n    return x + x\n```", "so ", "then "]
SPECIAL = ["<pad>", "<end>", "<user>", "<unk>"]
TEMPLATE = "{% for m in messages %}<user>{{ m['content'] }}{% endfor %}<user>"
SMALL = {
    "proposals.per_prompt": 8,
    "proposals.per_heldout_prompt": 4,
    "proposals.pilot": {"prompts": 3, "draws": 4},
    "sampling.max_completion_length": 4,
    "training.steps": 2,
    "training.warmup_steps": 1,
    "training.prompts_per_step": 2,
    "training.completions_per_prompt": 4,
    "training.micro_batch": 4,
    "training.lora": {"rank": 2},
    "evaluation.samples_per_prompt": 2,
    "evaluation.ks": [1, 2],
    "evaluation.train_prompts": 2,
}


def write_model(folder, seed):
    tokens = [*SPECIAL, *ANSWERS, *"abcdefghijklmnopqrstuvwxyz0123456789"]
    tokenizer = Tokenizer(models.WordLevel({token: i for i, token in enumerate(tokens)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(r"<user>|[\s\S]"), behavior="isolated")
    tokenizer.decoder = decoders.Fuse()
    special = {"pad_token": "<pad>", "eos_token": "<end>", "unk_token": "<unk>"}
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, clean_up_tokenization_spaces=False, **special)
    fast.chat_template = TEMPLATE
    fast.save_pretrained(folder)
    torch.manual_seed(seed)
    sizes = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2}
    ends = {"bos_token_id": None, "eos_token_id": 1, "pad_token_id": 0}
    config = Qwen2Config(vocab_size=len(tokens), num_key_value_heads=1, tie_word_embeddings=True, **sizes, **ends)
    model = Qwen2ForCausalLM(config)
    with torch.no_grad():
        # Answers and the end of a completion come often, whatever stands before.
        model.lm_head.weight.mul_(8.0)
    model.save_pretrained(folder)
    return str(folder)


def maths_rows(level):
    rows = []
    for a in range(24):
        total = 6 if a % 2 else 4
        text, solution = f"{a} and {total - a}, level {level}", "add them"
        rows.append({"question": f"Add {text}.", "answer": f"{solution}\n#### {total}", "solution": solution})
        rows[-1] |= {"problem": f"Sum up {text}.", "level": level}
    return rows


def code_rows():
    solution = "def double(x):\n    return 2 * x"
    tests = ["assert double(2) == 4", "assert double(5) == 10"]
    rows = [{"task_id": i, "prompt": f"Write a function that doubles a number, number {i}."} for i in range(30)]
    return [row | {"code": solution, "test_imports": [], "test_list": tests} for row in rows]


def data(name):
    """Rows for every source of a recipe, in the columns that it names."""
    if name == "mbpp":
        return [code_rows()]
    if name == "gsm8k":
        return [maths_rows(1)[:18], maths_rows(1)[18:]]
    # Of all levels: those that the recipe does not want are to be left out.
    rows = [row | {"answer": row["answer"][-1]} for level in (1, 2, 5) for row in maths_rows(level)]
    return [rows[::2], rows[1::2]]


@pytest.mark.parametrize("name", ["mbpp", "gsm8k", "math"])
def test_a_twin_of_the_recipe_runs_from_start_to_report(name, tmp_path, monkeypatch):
    recipe = yaml.safe_load(Path(f"recipes/{name}-qwen.yaml").read_text())
    load_recipe(f"recipes/{name}-qwen.yaml")  # as it stands, it is one
    recipe["run_dir"] = str(tmp_path / "run")
    recipe["models"] = {
        "reference": write_model(tmp_path / "reference", 0),
        "proposal": write_model(tmp_path / "proposal", 1),
    }
    for number, (source, rows) in enumerate(zip(recipe["tasks"]["sources"], data(name), strict=True)):
        path = tmp_path / f"rows{number}.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        for field in ("hub", "revision", "split"):
            source.pop(field, None)
        source["path"] = str(path)
    for key, value in SMALL.items():
        section, field = key.split(".")
        recipe[section][field] = value
    # The twin's rows are not the benchmark's.
    monkeypatch.setattr(dataset_task, "verify", lambda *args, **how: "a test's rows")
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    lines = []
    Pipeline(load_recipe(tmp_path / "recipe.yaml"), say=lines.append).run()

    run = tmp_path / "run"
    prompts = read_rows(run / "1_tasks", Prompt)
    assert all("level 5" not in prompt.prompt for prompt in prompts)
    assert {prompt.split for prompt in prompts} >= {"train", "heldout"}
    solved = [row.reward for row in read_rows(run / "3_scoring", ScoredTrajectory)]
    assert 0 < sum(solved) < len(solved), "rewards are all the same"
    assert read_json(run / "pilot" / "manifest.json")["chosen"] in " ".join(lines)
    parity = read_json(run / "3_scoring" / "parity.json")
    assert all(parity[source]["mean"] < 1e-5 for source in ("reference", "proposal") if source in parity)
    for method in recipe["training"]["methods"]:
        assert (run / "6_training" / method / "model" / "config.json").is_file()
    page = (run / "8_report" / "report.html").read_text()
    assert "pass@2" in page
