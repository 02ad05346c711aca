"""DISA against GRPO where a small model calls a calculator: countdown, three numbers, correct traces counted exactly.

A solution is a trace. Every call joins two of the numbers at hand, the calculator's answer takes their place, and the
last answer is the target, which the model then states::

    user 2 3 7=27   model c(x=2+7)   tool 9   model c(x=3*9)   tool 27   model 27

Two traces are one mode where their calls agree up to the order of operands of ``+`` and ``*``; all correct ones of a
prompt can be listed. A model learns the form from generated traces (warm-up), is calibrated by ``disa.calibrate`` with
``tools=``, and trained by ``DISATrainer`` and by GRPO with equally many completions, those of the calibration included.
A policy is evaluated by ``disa.calibrate`` as well, as the proposal: its draws come with log pi, log pi_ref and reward.
What lies in the folder is not done again::

    OMP_NUM_THREADS=1 python benchmarks/tool_countdown.py runs/tool-countdown --page docs/results.md
"""

from __future__ import annotations

import argparse
import functools
import random
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations_with_replacement, groupby, islice, permutations
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from peft import LoraConfig
from trl import GRPOConfig, SFTConfig, SFTTrainer

import disa
from disa.evaluation.metrics import per_prompt
from disa.lm.hf_trainer import save_trained_model, trainer_arguments
from disa.lm.loading import load_tokenizer, trainable_model
from disa.rewards.expression import expression_numbers, expression_value, parse_expression
from disa.runs.records import EvaluationRecord, ScoredTrajectory
from disa.tasks.python_rows import prompt_key
from disa.training.shared_prompt_trainer import SharedPromptTrainer
from disa.warmup.config import SmallModelConfig
from disa.warmup.small_model import character_tokenizer, small_model
from page import fill, spread, table

Row = Mapping[str, Any]
METRICS = ("mean@8", "pass@8", "distinct_modes@8", "effective_modes", "coverage", "kl_to_target", "kl_to_reference")
ALPHABET = " 0123456789+-*/()=?:;cx"
TEMPLATE = (
    "{% for m in messages %}{% if m['role'] == 'user' %}{{ m['content'] }}:"
    "{% elif m['role'] == 'tool' %}{{ m['content'] }};"
    "{% else %}{% generation %}{% for call in m.get('tool_calls') or [] %}{{ call['function']['name'] }}("
    "{% for k, v in call['function']['arguments'].items() %}{{ k }}={{ v }}{% endfor %}){% endfor %}"
    "{{ m['content'] }}<eos>{% endgeneration %}{% endif %}{% endfor %}"
)
CALLS = {
    "start_anchor_pattern": "[:;]",
    "defaults": {"role": "assistant", "content": ""},
    "fields": {
        "tool_calls": {
            "open": "c(x=",
            "close": ")",
            "repeats": True,
            "content": "text",
            "transform": {"type": "function", "function": {"name": "c", "arguments": {"x": "{content}"}}},
        },
        "content": {"close": "<eos>", "content": "text"},
    },
}
"""How the calls that the template writes are read back."""


@dataclass(frozen=True)
class Size:
    """How much is done; the defaults are those of the reported run."""

    high: int = 20
    train: int = 192
    validation: int = 32
    heldout: int = 64
    warmup: int = 1000
    width: int = 64
    warmup_steps: tuple[int, int] = (500, 60)
    """Of correct traces, then of traces half of which miss the target: the model knows more than it shows."""
    draws: int = 16
    """Trajectories per training prompt."""
    samples: int = 16
    """Per prompt of an evaluation."""
    log_z_draws: int = 32
    """Trajectories per evaluation prompt; they count for no method."""
    prompts: int = 8
    """Per step, with ``group`` completions each."""
    group: int = 8
    steps: int = 48
    search_steps: int = 16
    rates: tuple[float, ...] = (1e-3, 3e-3)
    seeds: tuple[int, ...] = (1, 2, 3)
    beta: float = 4.0
    limit: int = 40
    methods: tuple[str, ...] = ("disa_both", "grpo")
    """Also ``disa``: without stored trajectories."""

    def steps_of(self, method: str) -> int:
        """DISA's, or as many more as the calibration drew."""
        return self.steps + (self.train * self.draws // (self.prompts * self.group) if method == "grpo" else 0)


@functools.cache
def joined(call: str) -> tuple[str, tuple[int, ...], int] | None:
    """Canonical form, operands and result of one call; None unless it joins two numbers to a whole one from 0 on."""
    expression = parse_expression(call)
    if expression is None or isinstance(expression, int) or len(operands := expression_numbers(expression)) != 2:
        return None
    result, operator = expression_value(expression), expression[0]
    if result is None or result.denominator > 1 or result < 0:
        return None
    ordered = sorted(operands) if operator in "+*" else operands
    return operator.join(map(str, ordered)), tuple(operands), int(result)


def c(x: str) -> str:
    """Join two numbers.

    Args:
        x: Two numbers with an operator between them.
    """
    found = joined(x)
    return str(found[2]) if found else "?"


def mode(messages: Sequence[Row], numbers: Sequence[int], target: int) -> str | None:
    """Canonical form of a correct trace, None for any other."""
    at_hand, forms = list(numbers), []
    for call in (call for message in messages for call in message.get("tool_calls") or []):
        if (found := joined(call["function"]["arguments"]["x"])) is None:
            return None
        form, operands, result = found
        for number in operands:
            if number not in at_hand:
                return None
            at_hand.remove(number)
        at_hand.append(result)
        forms.append(form)
    *_, last = messages
    stated = last["role"] == "assistant" and last["content"] == str(target)
    return ",".join(forms) if stated and at_hand == [target] else None


def solved(completions: Sequence[Any], numbers: Sequence[Any], target: Sequence[int], **_: Any) -> list[float]:
    """1 for a correct trace, else 0."""
    return [float(mode(*row) is not None) for row in zip(completions, numbers, target, strict=True)]


def traces(at_hand: Sequence[int], calls: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], int]]:
    """Calls in canonical form, and the last result, of every trace that uses all numbers; some come twice."""
    if len(at_hand) == 1:
        yield calls, at_hand[0]
    for i, j in permutations(range(len(at_hand)), 2):
        rest = [n for k, n in enumerate(at_hand) if k not in (i, j)]
        for operator in "+-*/":
            if found := joined(f"{at_hand[i]}{operator}{at_hand[j]}"):
                yield from traces([*rest, found[2]], (*calls, found[0]))


def draw_rows(size: Size) -> dict[str, list[dict[str, Any]]]:
    """Prompts with at least two correct traces, each in one split."""
    known = []
    for numbers in combinations_with_replacement(range(1, size.high + 1), 3):
        count = Counter(target for _, target in set(traces(numbers)))
        known += [(numbers, target, n) for target, n in sorted(count.items()) if n > 1 and 0 < target < 100]
    random.Random(0).shuffle(known)
    rows = iter(
        {"prompt": [{"role": "user", "content": f"{' '.join(map(str, numbers))}={target}"}], "numbers": list(numbers),
         "target": target, "traces": n}
        for numbers, target, n in known
    )  # fmt: skip
    return {split: list(islice(rows, getattr(size, split))) for split in ("heldout", "validation", "train", "warmup")}


def demonstration(row: Row, rng: random.Random, *, noisy: bool) -> list[dict[str, Any]]:
    """A conversation with a random trace, correct or, where noisy, any; operands in random order."""
    calls, target = rng.choice([t for t in sorted(set(traces(row["numbers"]))) if noisy or t[1] == row["target"]])
    messages = list(row["prompt"])
    for form in calls:
        operator = next(o for o in "+-*/" if o in form)
        turned = operator.join(reversed(form.split(operator)))
        x = turned if operator in "+*" and rng.random() < 0.5 else form
        call = {"type": "function", "function": {"name": "c", "arguments": {"x": x}}}
        messages += [
            {"role": "assistant", "content": "", "tool_calls": [call]},
            {"role": "tool", "name": "c", "content": c(x)},
        ]
    return [*messages, {"role": "assistant", "content": str(target)}]


def warm_up(folder: Path, start: Path | None, rows: Sequence[Row], steps: int, noise: float, size: Size) -> Path:
    """Supervised training on demonstrations, in the loss of which stands what the model writes itself."""
    if (folder / "config.json").is_file():
        return folder
    if start:
        model, tokenizer = trainable_model(start), load_tokenizer(start)
    else:
        tokenizer = character_tokenizer(ALPHABET)
        tokenizer.chat_template, tokenizer.response_template = TEMPLATE, CALLS
        model = small_model(SmallModelConfig(hidden_size=size.width, context_length=64), tokenizer, seed=0)
    rng = random.Random(0)
    shown = [demonstration(row, rng, noisy=rng.random() < noise) for row in rows for _ in range(3)]
    args = SFTConfig(
        str(folder.parent / "unused"),
        max_steps=steps,
        per_device_train_batch_size=min(64, len(shown)),
        learning_rate=2e-3,
        lr_scheduler_type="cosine",
        warmup_steps=steps // 20,
        save_strategy="no",
        assistant_only_loss=True,
        max_length=None,
        **trainer_arguments(False, 100),
    )
    data = Dataset.from_list([{"messages": messages} for messages in shown])
    trainer = SFTTrainer(model, args, train_dataset=data, processing_class=tokenizer)
    trainer.train()
    save_trained_model(trainer, folder)
    return folder


def train(method: str, rate: float, seed: int, steps: int, folder: Path, anchor: disa.Anchor, given: Row) -> Path:
    """Train adapters on the reference; the folder holds the merged model."""
    size: Size = given["size"]
    if (folder / "config.json").is_file():
        return folder
    own = trainer_arguments(False, 16) | {
        "output_dir": str(folder.parent / "unused"),
        "max_steps": steps,
        "per_device_train_batch_size": size.prompts * size.group,
        "gradient_accumulation_steps": 1,
        "num_generations": size.group,
        "learning_rate": rate,
        "seed": seed,
        "save_strategy": "no",
    }
    lora = LoraConfig(r=16, target_modules="all-linear", task_type="CAUSAL_LM")
    shared = {"train_dataset": Dataset.from_list(given["train"]), "tools": [c], "peft_config": lora}
    trainer: Any
    if method == "grpo":
        config = GRPOConfig(max_completion_length=size.limit, disable_dropout=True, **own)
        trainer = SharedPromptTrainer(given["reference"], solved, args=config, **shared)
    else:
        share = 0.8 if method == "disa_both" else 0.0
        trainer = disa.DISATrainer(
            given["reference"], solved, anchor, disa.DISAConfig(offline_share=share, **own), **shared
        )
    trainer.train()
    save_trained_model(trainer, folder)
    return folder


def calibrate(folder: Path, rows: Sequence[Row], given: Row, **changed: Any) -> disa.Anchor:
    """Draw with the calculator, judge, estimate."""
    size: Size = given["size"]
    arguments = {name: changed.pop(name) for name in ("proposal", "eval_dataset") if name in changed}
    args = disa.CalibrationConfig(
        str(folder), inverse_temperature=size.beta, max_completion_length=size.limit, **changed
    )
    return disa.calibrate(given["reference"], solved, rows, args, tools=[c], **arguments)


def evaluate(
    folder: Path, policy: Path | None, rows: Sequence[Row], anchor: disa.Anchor, given: Row
) -> dict[str, float]:
    """Every metric of samples of the policy, or of the reference, mean over prompts."""
    size: Size = given["size"]
    other = {"reference_share": 0.0, "proposal": str(policy)} if policy else {}
    drawn = calibrate(folder, rows, given, num_generations=size.samples, seed=1, **other).trajectories()
    tokenizer = load_tokenizer(given["reference"])
    row_of = {prompt_key(row, anchor.key_columns or ()): row for row in rows}
    records = [_record(t, mode(said(tokenizer, t), *_payload(row_of[t.prompt_id]))) for t in drawn]
    counts = {key: row["traces"] for key, row in row_of.items()}
    log_z = {key: anchor.estimates[key].log_z for key in row_of}
    found = per_prompt(records, counts, [8], log_z=log_z, beta=size.beta)["policy"]["heldout"]
    return {name: float(np.mean(list(found[name].values()))) for name in METRICS}


def _payload(row: Row) -> tuple[list[int], int]:
    return row["numbers"], row["target"]


def _record(t: ScoredTrajectory, form: str | None) -> EvaluationRecord:
    log_pi = t.log_ref if t.source == "reference" else t.log_proposal
    return EvaluationRecord(
        "policy", "countdown", t.prompt_id, "heldout", t.draw, t.completion, t.own_length, t.truncated, t.reward, form,
        log_pi, t.log_ref,
    )  # fmt: skip


def said(tokenizer: Any, row: ScoredTrajectory) -> list[dict[str, Any]]:
    """A trajectory's messages, as they were when it was drawn."""
    mask = row.tool_mask or [1] * len(row.completion_ids)
    parts = [(own, [i for _, i in pairs]) for own, pairs in groupby(zip(mask, row.completion_ids, strict=True), _first)]
    return [
        tokenizer.parse_response(ids, prefix=[]) if own else {"role": "tool", "content": tokenizer.decode(ids)}
        for own, ids in parts
    ]


def _first(pair: tuple[int, int]) -> int:
    return pair[0]


def run(folder: Path, size: Size) -> tuple[dict[str, list[dict[str, float]]], dict[str, dict[float, float]]]:
    """All models; metrics of every seed on held-out prompts, and Mean@8 of every rate on validation prompts."""
    rows = draw_rows(size)
    strong = warm_up(folder / "strong", None, rows["warmup"], size.warmup_steps[0], 0.0, size)
    reference = warm_up(folder / "reference", strong, rows["warmup"], size.warmup_steps[1], 0.5, size)
    given = {"size": size, "reference": str(reference), "train": rows["train"]}
    others = [*rows["heldout"], *rows["validation"]]
    anchor = calibrate(
        folder / "anchor",
        rows["train"],
        given,
        num_generations=size.draws,
        num_generations_eval=size.log_z_draws,
        eval_dataset=others,
    )
    results = {"reference": [evaluate(folder / "evaluation" / "reference", None, rows["heldout"], anchor, given)]}
    search: dict[str, dict[float, float]] = {}
    for method in size.methods:
        search[method] = {}
        for rate in size.rates:
            name = f"{method}-{rate:g}-search"
            model = train(method, rate, 0, size.search_steps, folder / "policies" / name, anchor, given)
            found = evaluate(folder / "evaluation" / name, model, rows["validation"], anchor, given)
            search[method][rate] = found["mean@8"]
        rate, results[method] = max(search[method], key=lambda r: search[method][r]), []
        for seed in size.seeds:
            name = f"{method}-{rate:g}-{seed}"
            model = train(method, rate, seed, size.steps_of(method), folder / "policies" / name, anchor, given)
            results[method].append(evaluate(folder / "evaluation" / name, model, rows["heldout"], anchor, given))
    return results, search


def main() -> None:
    """Run what is missing, print, and write the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--page", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(1)
    results, search = run(options.folder, Size())
    text = "\n".join(lines(results, search, Size()))
    print(text)
    if options.page:
        fill("tool-countdown", text, options.page)


def lines(
    results: Mapping[str, list[dict[str, float]]], search: Mapping[str, Mapping[float, float]], size: Size
) -> list[str]:
    """Both tables."""
    rows = [
        [name, *(spread(np.array([f[m] for f in found])) if len(found) > 1 else f"{found[0][m]:.3f}" for m in METRICS)]
        for name, found in results.items()
    ]
    tried = [[method, *(f"{found[rate]:.3f}" for rate in size.rates)] for method, found in search.items()]
    drawn, stored = size.prompts * size.group, size.train * size.draws
    return [
        f"{size.heldout} held-out prompts, {size.samples} samples each, inverse temperature {size.beta:g}; mean over "
        f"{len(size.seeds)} seeds ± one standard error. Completions: DISA {stored} before training and "
        f"{size.steps * drawn} in it, GRPO {size.steps_of('grpo') * drawn}.",
        "",
        *table(["model", *METRICS], rows),
        "",
        f"Mean@8 on {size.validation} validation prompts after {size.search_steps} steps, by learning rate:",
        "",
        *table(["method", *(f"{rate:g}" for rate in size.rates)], tried),
    ]


if __name__ == "__main__":
    main()
