"""The plan's counts against real models, optimisers and finished runs; its clock against known times."""

import copy
import dataclasses
import json
import os

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from disa.cli.main import main
from disa.errors import DisaError
from disa.lm import head
from disa.planning import work
from disa.planning.cluster import GPUS, Cluster
from disa.planning.model_shape import ModelShape
from disa.planning.plan import StagePlan, _held, _measured, make_plan
from disa.planning.rehearsal import Rehearsal, _of_parts, _of_steps, rehearse
from disa.planning.work import StageWork, TextLengths, _activation_bytes, _cache_bytes, _trained_bytes, count_work
from disa.recipe import load_recipe
from disa.runs.folders import read_json, write_json
from disa.runs.parquet_rows import read_rows, write_rows
from disa.runs.records import EvaluationRecord, Trajectory
from disa.warmup.config import SmallModelConfig
from disa.warmup.small_model import character_tokenizer, small_model

LENGTHS = TextLengths(prompt=10.0, completion=6.0, demonstration=6.0)


@pytest.fixture(scope="module")
def llama():
    config = SmallModelConfig(hidden_size=64, layers=3, heads=4, context_length=64)
    return small_model(config, character_tokenizer("0123456789+-*/()="), seed=0)


def test_forward_operations_are_those_that_torch_counts(llama):
    batch, length = 2, 20
    # Written out, attention is products of batches of matrices, which the counter knows apart from the weights'.
    model = copy.deepcopy(llama)
    model.set_attn_implementation("eager")
    with FlopCounterMode(display=False) as counter:
        model(input_ids=torch.zeros(batch, length, dtype=torch.long))
    attention = counter.get_flop_counts()["Global"][torch.ops.aten.bmm]
    shape = ModelShape.of(llama)
    # Torch counts products of matrices: norms' weights multiply element by element and are no part of it.
    norms = sum(p.numel() for name, p in llama.named_parameters() if "norm" in name)
    weights = 2 * (shape.parameters - shape.embedding - norms) * batch * length
    assert counter.get_total_flops() - attention == weights
    # It counts all pairs of positions, of which causal attention needs half.
    assert shape.forward_flops(batch * length, length) - 2 * norms * batch * length == weights + attention / 2


def test_tied_embeddings_stay_in_the_count_because_the_head_multiplies_by_them(llama):
    assert ModelShape.of(llama).embedding == llama.get_input_embeddings().weight.numel()
    tied = copy.deepcopy(llama)
    tied.lm_head.weight = tied.get_input_embeddings().weight
    assert ModelShape.of(tied).embedding == 0


def test_bytes_of_training_are_those_of_weights_gradients_and_adamw(llama):
    model = small_model(SmallModelConfig(hidden_size=64, layers=3, heads=4), character_tokenizer("0123456789"), seed=1)
    optimiser = torch.optim.AdamW(model.parameters())
    model(input_ids=torch.zeros(1, 4, dtype=torch.long), labels=torch.zeros(1, 4, dtype=torch.long)).loss.backward()
    optimiser.step()
    held = [t for p in model.parameters() for t in (p, p.grad, *optimiser.state[p].values()) if t.numel() > 1]
    shape = ModelShape.of(model)
    assert _trained_bytes(shape, lora=False) == sum(t.numel() * t.element_size() for t in held)


def test_bytes_of_keys_and_values_are_those_of_a_real_cache(llama):
    cache = llama(input_ids=torch.zeros(1, 20, dtype=torch.long), use_cache=True).past_key_values
    held = sum(t.numel() * t.element_size() for layer in cache.layers for t in (layer.keys, layer.values))
    assert _cache_bytes(ModelShape.of(llama), 20) == held


def test_activations_are_of_the_size_that_autograd_keeps(llama):
    # The formula is for another block (GELU, dropout, 16 bits); a plan needs the size, so a factor of two is allowed.
    ids, kept = torch.zeros(8, 40, dtype=torch.long), {}

    def keep(tensor):
        if not isinstance(tensor, torch.nn.Parameter):
            kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        loss = llama(input_ids=ids, labels=ids).loss
    planned = _activation_bytes(ModelShape.of(llama), ids.numel(), trained=True, whole_logits=True)
    assert loss.requires_grad and 0.5 < planned / sum(kept.values()) < 2.0


def test_checkpointed_training_keeps_the_inputs_of_its_layers():
    model = small_model(SmallModelConfig(hidden_size=64, layers=24, heads=4), character_tokenizer("0123456789"), seed=1)
    # The reentrant kind keeps them by autograd, where they can be counted.
    (getattr(model, "activation_checkpointing_enable", None) or model.gradient_checkpointing_enable)(
        {"use_reentrant": True}
    )
    ids, kept = torch.zeros(8, 40, dtype=torch.long), {}

    def keep(tensor):
        if not isinstance(tensor, torch.nn.Parameter):
            kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    model.train()
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        assert model(input_ids=ids).logits.requires_grad
    shape = ModelShape.of(model)
    one_layer = _activation_bytes(shape, ids.numel(), trained=False, whole_logits=False)
    planned = _activation_bytes(shape, ids.numel(), trained=True, whole_logits=False, checkpointed=True) - one_layer
    # Beside the 24 inputs: that of the last norm, of the head and what both keep, of the size of some inputs.
    assert planned <= sum(kept.values()) <= 1.25 * planned


def test_sequences_are_those_a_finished_run_reports(finished_run):
    recipe = load_recipe(finished_run.parent / "recipe.yaml")
    shape = ModelShape(parameters=1000, embedding=0, layers=1, hidden=8, kv_width=8, vocabulary=10)
    prompts = read_json(finished_run / "1_tasks" / "manifest.json")["prompts"]
    work = count_work(recipe, shape, LENGTHS, prompts)
    reported = {
        "2_proposals": "trajectories",
        "3_scoring": "trajectories",
        **{f"6_training/{method}": "completions" for method in recipe.training.methods},
        **{f"7_evaluation/{model}": "samples" for model in ("reference", *recipe.training.methods)},
    }
    for stage, key in reported.items():
        assert work[stage].sequences == read_json(finished_run / stage / "manifest.json")[key], stage
    assert work["warmup"].sequences == (60 + 60) * 32


def test_a_stage_costs_more_where_it_does_more(tiny_recipe, write_recipe):
    shape = ModelShape(parameters=1000, embedding=0, layers=1, hidden=8, kv_width=8, vocabulary=10)

    def work(changes):
        recipe = load_recipe(write_recipe(tiny_recipe), changes)
        return count_work(recipe, shape, LENGTHS, {"train": 6, "validation": 0, "heldout": 3})

    plain = work([])
    forward = shape.forward_flops(16.0, 16.0)
    assert plain["3_scoring"].passes == 2 * plain["3_scoring"].sequences * forward
    assert work(["warmup.proposal=null"])["3_scoring"].passes == plain["3_scoring"].passes / 2
    # Policy forward and backward (3), reference (1); with offline trajectories another batch forward and backward.
    assert plain["6_training/disa"].passes == 4 * plain["6_training/disa"].sequences * forward
    assert work(["training.offline_share=0.5"])["6_training/disa"].passes == 7 / 4 * plain["6_training/disa"].passes
    # TRL loads no reference for its own losses.
    assert plain["6_training/grpo"].passes == 3 * plain["6_training/grpo"].sequences * forward
    offline = work(["training.methods=[sft, lora_sft]"])
    assert offline["6_training/sft"].decoding == 0
    assert offline["6_training/lora_sft"].memory < offline["6_training/sft"].memory
    assert work(["training.lora={}"])["6_training/disa"].memory < plain["6_training/disa"].memory


def test_frozen_weights_take_the_bytes_of_their_precision_and_models_take_turns(tiny_recipe, write_recipe):
    shape = ModelShape(
        parameters=10**9, embedding=0, layers=1, hidden=1, kv_width=1, vocabulary=10, precision="bfloat16"
    )

    prompts = {"train": 6, "heldout": 3, "validation": 0}

    def memory(*changes):
        work = count_work(load_recipe(write_recipe(tiny_recipe), changes), shape, LENGTHS, prompts)
        return {name: round(stage.memory / 1e9) for name, stage in work.items()}

    plain, stated = memory(), memory("proposals.compute=float32", "scoring.compute=float32", "training.compute=float32")
    assert plain["2_proposals"] == plain["3_scoring"] == 2 and stated["2_proposals"] == stated["3_scoring"] == 4
    assert memory("proposals.source=bridge")["2_proposals"] == 2 * 2
    # Weights, gradients and moments of 4 bytes, and a reference; adapters leave the base alone.
    assert plain["6_training/disa"] == 16 + 2 and stated["6_training/disa"] == 16 + 4
    assert memory("training.lora={}")["6_training/disa"] == 2
    assert memory("training.optim=adamw_8bit")["6_training/disa"] == 10 + 2


def test_an_adaptive_budget_costs_what_a_uniform_one_does(tiny_recipe, write_recipe):
    shape = ModelShape(parameters=1000, embedding=0, layers=1, hidden=8, kv_width=8, vocabulary=10)
    prompts = {"train": 6, "validation": 0, "heldout": 3}
    uniform, adaptive = (
        count_work(load_recipe(write_recipe(tiny_recipe), changes), shape, LENGTHS, prompts)
        for changes in ([], ["proposals.adaptive={pilot: 4, rounds: 2}"])
    )
    assert adaptive == uniform


@pytest.mark.parametrize("source, draws, passes", [("bridge", 1.75, 2), ("hinted", 1.75, 2), ("tempered", 1, 1)])
def test_a_blend_costs_a_pass_per_stream_in_drawing_and_in_scoring(source, draws, passes, tiny_recipe, write_recipe):
    shape = ModelShape(parameters=1000, embedding=0, layers=1, hidden=8, kv_width=8, vocabulary=10)
    plain, blend = (
        count_work(
            load_recipe(write_recipe(tiny_recipe), [f"proposals.source={name}"]),
            shape,
            LENGTHS,
            {"train": 6, "validation": 0, "heldout": 3},
        )
        for name in ("proposal", source)
    )
    # A quarter of the draws is the reference's; plain scoring is by two models.
    assert blend["2_proposals"].decoding == draws * plain["2_proposals"].decoding
    assert blend["3_scoring"].passes == passes / 2 * plain["3_scoring"].passes


def test_drawing_again_costs_at_most_a_doubling_of_the_training_prompts_a_round(tiny_recipe, write_recipe):
    shape = ModelShape(parameters=1000, embedding=0, layers=1, hidden=8, kv_width=8, vocabulary=10)
    prompts = {"train": 6, "validation": 0, "heldout": 3}
    work = count_work(
        load_recipe(write_recipe(tiny_recipe), ["proposals.resample={rounds: 3}"]), shape, LENGTHS, prompts
    )
    assert work["2_proposals"].sequences == work["3_scoring"].sequences == 6 * 16 * 8 + 3 * 8


def test_a_scored_batch_holds_one_block_of_logits_however_large_the_vocabulary():
    shape = ModelShape(parameters=1000, embedding=0, layers=1, hidden=8, kv_width=8, vocabulary=10**5)
    other = dataclasses.replace(shape, vocabulary=10**6)
    sizes = [_activation_bytes(s, 10**4, trained=False, whole_logits=False) for s in (shape, other)]
    assert sizes[0] == sizes[1]


def test_a_clusters_time_is_operations_over_reached_peak(tiny_recipe, write_recipe):
    shape = ModelShape(parameters=10**9, embedding=0, layers=1, hidden=8, kv_width=8, vocabulary=10)
    recipe = load_recipe(write_recipe(tiny_recipe))
    work = count_work(recipe, shape, LENGTHS, {"train": 6, "validation": 0, "heldout": 3})["7_evaluation/disa"]
    one = Cluster("h100", 1, passes=0.5, decoding=0.1)
    assert one.seconds(work) == pytest.approx((work.passes / 0.5 + work.decoding / 0.1) / 989e12, rel=1e-12)
    assert Cluster("h100", 8, passes=0.5, decoding=0.1).seconds(work) == pytest.approx(one.seconds(work) / 8)
    assert all(0 < gpu.bfloat16 < 1e16 and gpu.source for gpu in GPUS.values())


def test_several_gpus_share_the_weights_and_gather_two_layers_at_a_time():
    work = StageWork(1, 1.0, 1.0, 1.0, weights=160e9, batch=30e9, layer=1e9)
    assert work.memory == 190e9
    assert Cluster("h100", 8).per_gpu(work) == 20e9 + 30e9 + 2e9 and Cluster("h100", 8).per_gpu(work, 1) == 190e9
    fits = {(kind, count): Cluster(kind, count).fits(work) for kind, count in (("h100", 2), ("h100", 8), ("h200", 1))}
    assert list(fits.values()) == ["no", "sharded", "no"]
    assert Cluster("h100", 1).fits(dataclasses.replace(work, weights=50e9)) == "yes"


def test_a_recipe_for_verl_passes_as_many_tokens_at_once_as_it_says(tiny_recipe, write_recipe):
    shape = ModelShape(parameters=1000, embedding=0, layers=1, hidden=8, kv_width=8, vocabulary=10)

    def batch(*changes):
        recipe = load_recipe(write_recipe(tiny_recipe), changes)
        return count_work(recipe, shape, LENGTHS, {"train": 6, "validation": 0, "heldout": 3})["6_training/disa"].batch

    here, there = batch("training.micro_batch=3", "training.vllm={}"), batch("verl.trainer.nnodes=1")
    assert there / here == 16384 / (3 * LENGTHS.sequence)
    assert batch("verl.actor_rollout_ref.actor.ppo_max_token_len_per_gpu=8192") == there / 2


def test_a_stages_pace_is_the_median_of_its_later_parts(tmp_path):
    row = Trajectory("0" * 16, 0, "reference", "a", [1], False, -1.0)
    # The first part includes loading; one later part was held up by something else.
    for number, (rows, at) in enumerate([(10, 5.0), (10, 6.0), (20, 8.0), (10, 99.0), (5, 99.5)]):
        part = tmp_path / f"part-{number:06d}.parquet"
        write_rows(part, [row] * rows, Trajectory)
        os.utime(part, (at, at))
    write_json(tmp_path / "manifest.json", {"seconds": 12.0})
    pace = _of_parts(tmp_path, units=2)
    assert pace.per_unit == pytest.approx(0.05)  # a tenth of a second per row of two units
    assert pace.overhead == pytest.approx(12.0 - 0.05 * 2 * 55)
    assert pace.seconds(1000) == pytest.approx(pace.overhead + 50)


def test_a_trainings_pace_is_the_median_of_its_later_steps(tmp_path):
    log = tmp_path / "steps.jsonl"
    log.write_text("".join(json.dumps({"step": i, "wall_time": t}) + "\n" for i, t in enumerate((3.0, 3.5, 4.0, 9.0))))
    write_json(tmp_path / "manifest.json", {"seconds": 11.0})
    pace = _of_steps(tmp_path, [log], units=5)
    assert pace.per_unit == pytest.approx(0.1)
    assert pace.overhead == pytest.approx(11.0 - 4 * 0.5)


@pytest.fixture(scope="module")
def rehearsed(finished_run):
    # Five steps of warm-up solve nothing, which must not keep supervised training from being rehearsed.
    return rehearse(load_recipe(finished_run.parent / "recipe.yaml", ["training.methods=[disa, grpo, sft]"]))


def test_a_rehearsal_times_every_stage_that_runs_a_model(rehearsed, finished_run):
    recipe = load_recipe(finished_run.parent / "recipe.yaml")
    plans = make_plan(recipe, rehearsed, against=finished_run)
    stages = {str(m.parent.relative_to(finished_run)) for m in finished_run.rglob("manifest.json")}
    assert {plan.stage for plan in plans} == stages - {"8_report"}
    assert all(plan.seconds > 0 and plan.measured > 0 and plan.ratio > 0 for plan in plans)
    assert all(plan.work.flops > 0 for plan in plans if plan.work)
    assert rehearsed.paces["6_training/sft"].per_unit > 0
    # Tokens that the plan expects, against those that the run's models wrote.
    rows = [len(row.completion_ids) for row in read_rows(finished_run / "2_proposals", Trajectory)]
    # Five letters and a stop token are all a demonstration has; a trained model stays near it.
    assert rehearsed.lengths.completion == 6.0 and abs(sum(rows) / len(rows) - 6.0) < 1.0
    evaluated = read_rows(finished_run / "7_evaluation" / "disa", EvaluationRecord)
    assert next(p for p in plans if p.stage == "7_evaluation/disa").work.sequences == len(evaluated)


def test_the_plan_follows_the_recipe_and_not_the_rehearsal(rehearsed, finished_run):
    recipe = finished_run.parent / "recipe.yaml"

    def seconds(*changes):
        return {plan.stage: plan.seconds for plan in make_plan(load_recipe(recipe, list(changes)), rehearsed)}

    short, long = seconds("training.steps=100"), seconds("training.steps=300")
    pace = rehearsed.paces["6_training/disa"]
    assert long["6_training/disa"] - short["6_training/disa"] == pytest.approx(200 * 12 * pace.per_unit)
    assert long["2_proposals"] == short["2_proposals"]


def test_the_memory_of_a_measured_stage_is_the_most_of_its_rounds_and_the_gpus_where_there_is_one(tmp_path):
    for folder, held in (("", {"peak_memory": 5}), ("round-1", {"peak_memory": 9})):
        (tmp_path / "2_proposals" / folder).mkdir(exist_ok=True, parents=True)
        write_json(tmp_path / "2_proposals" / folder / "manifest.json", {"seconds": 1.0} | held)
    assert _held(tmp_path, "2_proposals", 1) == 9 and _held(tmp_path, "2_proposals", 0) == 5
    write_json(tmp_path / "2_proposals" / "manifest.json", {"peak_memory": 5, "peak_cuda_memory": 3})
    assert _held(tmp_path, "2_proposals", 1) == 3
    assert _held(tmp_path, "3_scoring", 0) is None


@pytest.mark.parametrize("counts", [(8, 0), (0, 8), (8, 8)])
def test_a_training_is_as_large_as_its_steps_whether_it_drew_or_read_or_both(tmp_path, counts):
    stage = "6_training/disa_both"
    (tmp_path / stage).mkdir(parents=True)
    facts = dict(zip(("completions", "stored"), counts, strict=True))
    write_json(tmp_path / stage / "manifest.json", {"seconds": 3.0} | facts)
    assert _measured(tmp_path, stage, StageWork(8, 0.0, 0.0, 0.0, 0.0, 0.0)) == (3.0, 1.0)
    with pytest.raises(DisaError, match="the run has 8 completions in 6_training/disa_both, the recipe asks for 16"):
        _measured(tmp_path, stage, StageWork(16, 0.0, 0.0, 0.0, 0.0, 0.0))


def test_a_run_without_finished_stages_is_nothing_to_compare_with(rehearsed, finished_run, tmp_path):
    with pytest.raises(DisaError, match="no finished stage of this recipe"):
        make_plan(load_recipe(finished_run.parent / "recipe.yaml"), rehearsed, against=tmp_path)


def test_a_run_of_another_size_is_not_compared(rehearsed, finished_run):
    for change, stage in (("training.steps=5", "6_training/disa"), ("proposals.per_prompt=8", "2_proposals")):
        recipe = load_recipe(finished_run.parent / "recipe.yaml", [change])
        with pytest.raises(DisaError, match=f"completions in {stage}, the recipe asks for"):
            make_plan(recipe, rehearsed, against=finished_run)


def test_rounds_belong_to_their_stage_and_may_draw_less_than_was_planned(tmp_path):
    # The second round is of another recipe, which asked for more of them.
    for folder, trajectories, seconds in (("", 60, 2.0), ("round-1", 30, 1.0), ("round-2", 30, 1.0)):
        (tmp_path / "2_proposals" / folder).mkdir(exist_ok=True, parents=True)
        facts = {"trajectories": trajectories, "seconds": seconds}
        write_json(tmp_path / "2_proposals" / folder / "manifest.json", facts)

    def measured(asked, rounds, first):
        return _measured(tmp_path, "2_proposals", StageWork(asked, 0.0, 0.0, 0.0, 0.0, 0.0), rounds, first)

    assert measured(90, 1, 60) == (3.0, 1.0)
    assert measured(120, 1, 60) == (3.0, 0.75)
    assert measured(60, 0, 0) == (2.0, 1.0)
    with pytest.raises(DisaError, match="the run has 60 completions in 2_proposals, the recipe asks for 50"):
        measured(100, 1, 50)
    assert StagePlan("2_proposals", seconds=8.0, measured=3.0, made=0.75).ratio == 2.0


def test_the_command_prints_table_and_json(rehearsed, finished_run, monkeypatch, capsys):
    # The rehearsal above, not another one.
    monkeypatch.setattr("disa.planning.rehearsal.rehearse", lambda recipe: rehearsed)
    assert isinstance(rehearsed, Rehearsal)
    recipe = str(finished_run.parent / "recipe.yaml")
    assert main(["plan", recipe, "--gpus", "8", "--gpu", "h200", "--against", str(finished_run)]) == 0
    printed = capsys.readouterr().out
    assert all(word in printed for word in ("planned/measured", "GB measured", "on 8 h200", "6_training/grpo"))
    assert main(["plan", recipe, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert [stage["stage"] for stage in found["stages"]][:2] == ["1_tasks", "warmup"] and found["cluster"] is None
    assert main(["plan", recipe, "--gpus", "0"]) == 2


def test_a_block_of_logits_is_planned_as_the_head_makes_it():
    assert work._BLOCK_LOGITS == head._BLOCK_LOGITS
