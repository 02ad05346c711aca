"""Models and rows for tiny twins of the recipes for maths and code.

The models know whole answers as single tokens, so that random weights solve some prompts.
"""

import json
from pathlib import Path

import torch
import yaml
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast, Qwen2Config, Qwen2ForCausalLM

from disa.recipe import load_recipe
from disa.tasks import dataset as dataset_task

SOLVED = "```python\ndef double(x):\n    return 2 * x\n```"
ANSWERS = ["\\boxed{4}", "\\boxed{6}", SOLVED, "```python\ndef double(x):\n    return x + x\n```", "so ", "then "]
SPECIAL = ["<pad>", "<end>", "<user>", "<unk>"]
TEMPLATE = "{% for m in messages %}<user>{{ m['content'] }}{% endfor %}<user>"


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


SIZES = {
    "tasks": {"train_prompts": 16, "heldout_prompts": 4},
    "sampling": {"max_completion_length": 4},
    "proposals": {"per_prompt": 8, "per_heldout_prompt": 4},
    "scoring": {"tokens_per_batch": 512},
    "training": {"steps": 2, "warmup_steps": 1, "prompts_per_step": 4, "completions_per_prompt": 4},
    "evaluation": {"samples_per_prompt": 2, "ks": [1, 2], "train_prompts": 2},
}


def twin(name, folder, monkeypatch, **training):
    """A recipe for large models with a tiny one, rows of its own and transformers in vLLM's place."""
    recipe = yaml.safe_load(Path(f"recipes/{name}.yaml").read_text())
    assert load_recipe(f"recipes/{name}.yaml").proposals.engine == "vllm"
    recipe["run_dir"] = str(folder / "run")
    recipe["models"] |= {"reference": write_model(folder / "reference", 0)}
    for number, (source, rows) in enumerate(zip(recipe["tasks"]["sources"], data("gsm8k"), strict=True)):
        path = folder / f"rows{number}.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        source["path"] = str(path)
    for section, sizes in SIZES.items():
        recipe[section] |= sizes
    for section in ("proposals", "training"):
        recipe[section].pop("vllm", None)
    recipe["proposals"].pop("engine")
    recipe["training"] |= training
    # The twin's rows are not the benchmark's.
    monkeypatch.setattr(dataset_task, "verify_benchmark", lambda *args, **how: "a test's rows")
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    return load_recipe(folder / "recipe.yaml")
