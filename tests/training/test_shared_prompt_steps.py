"""What a training step computes, and what it leaves out."""

import dataclasses
import json
from types import SimpleNamespace

import pytest
import torch
from accelerate import Accelerator
from peft import LoraConfig, get_peft_model
from small_trainer import GENERATIONS, PROMPTS, RecordingTrainer
from torch.nn.utils.rnn import pad_sequence

from disa.lm.loading import trainable_model
from disa.lm.merged_adapters import merged_adapters
from disa.lm.sampler import draw_tokens
from disa.testing import Space
from disa.testing.hf import OracleConfig, OracleForCausalLM
from disa.training.offline_trainer import OfflineConfig, OfflineTrainer, forward_loss
from disa.training.policy_log_probs import answer_log_probs, completion_log_probs
from small_architectures import ragged_rows, small_architecture

ROWS = PROMPTS * GENERATIONS


@pytest.fixture
def tokens_of():
    """Numbers of tokens that enter a model, call by call."""
    hooks = []

    def watch(model):
        seen = []
        embedding = model.get_input_embeddings()
        hooks.append(embedding.register_forward_pre_hook(lambda module, args: seen.append(args[0].numel())))
        return seen

    yield watch
    for hook in hooks:
        hook.remove()


def test_a_step_computes_each_prompt_once_in_sampling_reference_and_loss_and_nothing_else(
    small_run, tmp_path, tokens_of
):
    # Without probes and stored trajectories, which are tried once before the first step.
    without_probes = {"anchor": dataclasses.replace(small_run.anchor, probes={}, path=None)}
    trainer = small_run.trainer(tmp_path, parts=without_probes, trainer_class=RecordingTrainer)
    assert trainer.prompts_not_shared is None
    policy, reference = tokens_of(trainer.model), tokens_of(trainer.ref_model)
    trainer.train()
    ((inputs, _),) = trainer.losses
    lengths = inputs["prompt_mask"].sum(dim=1).tolist()
    prompts = dict(zip(map(tuple, inputs["prompt_ids"].tolist()), lengths, strict=True))
    assert len(prompts) == PROMPTS
    once = sum(prompts.values()) + int(inputs["completion_mask"].sum()) - ROWS
    assert reference == [once]
    # The first call of the policy is sampling's, the last one the loss's; between them stand single tokens.
    assert policy[0] == sum(prompts.values()) and policy[-1] == once
    assert all(size <= ROWS for size in policy[1:-1])
    assert len(policy) - 2 <= inputs["completion_ids"].size(1) - 1


def test_the_entropy_is_computed_in_logged_steps_only(small_run, tmp_path):
    asked = []

    class Asking(RecordingTrainer):
        def _get_per_token_logps_and_entropies(self, model, *args, compute_entropy=False, **others):
            if torch.is_grad_enabled():
                asked.append(compute_entropy)
            return super()._get_per_token_logps_and_entropies(model, *args, compute_entropy=compute_entropy, **others)

    changes = {"max_steps": 5, "logging_steps": 2}
    trainer = small_run.trainer(tmp_path, trainer_class=Asking, **changes)
    trainer.train()
    assert asked == [True, True, False, True, True]  # the first, every second, and the last
    lines = [line for line in trainer.state.log_history if "loss" in line]
    assert [line["step"] for line in lines] == [1, 2, 4]
    assert all(line["entropy"] > 0 for line in lines)


def test_bfloat16_computes_in_bfloat16_around_float32_weights(small_run, tmp_path):
    kinds = set()
    trainer = small_run.trainer(tmp_path, trainer_class=RecordingTrainer, bf16=True)
    layer = trainer.model.model.layers[0].mlp.up_proj
    hook = layer.register_forward_hook(lambda module, args, out: kinds.add(out.dtype))
    before = [p.clone() for p in trainer.model.parameters()]
    trainer.train()
    hook.remove()
    assert kinds == {torch.bfloat16}
    assert {p.dtype for p in trainer.model.parameters()} == {torch.float32}
    assert any(not torch.equal(a, b) for a, b in zip(before, trainer.model.parameters(), strict=True))
    inputs, loss = trainer.losses[0]
    exact, _, _ = trainer._get_per_token_logps_and_entropies(
        trainer.ref_model,
        torch.cat([inputs["prompt_ids"], inputs["completion_ids"]], dim=1),
        torch.cat([inputs["prompt_mask"], inputs["completion_mask"]], dim=1),
        inputs["completion_ids"].size(1),
    )
    assert exact.dtype == inputs["ref_per_token_logps"].dtype == torch.float32


def test_a_distributed_wrapper_passes_the_call_on_and_sees_the_backward_pass(tmp_path):
    model, (prompts, completions) = small_architecture("llama"), ragged_rows()
    completions = [c or [2] for c in completions]
    prompt_ids = pad_sequence([torch.tensor(p) for p in prompts], batch_first=True, padding_side="left")
    completion_ids = pad_sequence([torch.tensor(c) for c in completions], batch_first=True)
    # Token 0 is padding, and no row has it.
    inputs = (prompt_ids, (prompt_ids > 0).long(), completion_ids, (completion_ids > 0).long())
    assert answer_log_probs([model], Accelerator(cpu=True)) is None
    expected, _ = completion_log_probs(model, *inputs, temperature=1.0)
    expected.sum().backward()
    gradients = {n: p.grad.clone() for n, p in model.named_parameters()}
    model.zero_grad()
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        wrapped = torch.nn.parallel.DistributedDataParallel(model)
        reduced = []
        wrapped.register_comm_hook(reduced, count_buckets)
        found, _ = completion_log_probs(wrapped, *inputs, temperature=1.0)
        found.sum().backward()
    finally:
        torch.distributed.destroy_process_group()
    assert torch.equal(found, expected)
    assert reduced
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter.grad, gradients[name]), name


def count_buckets(reduced, bucket):
    reduced.append(bucket.index())
    done = torch.futures.Future()
    done.set_result(bucket.buffer())
    return done


LORA = {"r": 2, "target_modules": "all-linear", "task_type": "CAUSAL_LM", "init_lora_weights": False}


def adapted(**changes):
    torch.manual_seed(0)
    return get_peft_model(small_architecture("llama"), LoraConfig(**LORA | changes)).double()


def test_merged_adapters_draw_what_separate_ones_draw_and_leave_no_trace():
    model, (prompts, _) = adapted(), ragged_rows()
    weights = {n: (p.data_ptr(), p.clone(), p.requires_grad) for n, p in model.named_parameters()}
    numbers = torch.rand(len(prompts), 12, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    expected, log_p = draw_tokens(model.get_base_model(), prompts, numbers, [1])
    layer = model.get_base_model().model.layers[0].self_attn.q_proj
    with merged_adapters(model):
        update = layer.lora_B["default"].weight @ layer.lora_A["default"].weight * layer.scaling["default"]
        merged = weights["base_model.model.model.layers.0.self_attn.q_proj.base_layer.weight"][1] + update
        torch.testing.assert_close(layer.base_layer.weight, merged)
        found, merged_log_p = draw_tokens(model.get_base_model(), prompts, numbers, [1])
    assert found == expected
    # float32 norms, as everywhere: log-probabilities of at most some dozen nats.
    assert [sum(row) for row in merged_log_p] == pytest.approx([sum(row) for row in log_p], abs=1e-3)
    for name, parameter in model.named_parameters():
        pointer, value, trained = weights[name]
        assert parameter.data_ptr() == pointer and torch.equal(parameter, value), name
        assert parameter.requires_grad == trained, name


def test_merged_adapters_are_taken_apart_after_an_error_too():
    model = adapted()
    before = {n: p.clone() for n, p in model.named_parameters()}
    with pytest.raises(KeyboardInterrupt), merged_adapters(model):
        raise KeyboardInterrupt
    assert all(torch.equal(p, before[n]) for n, p in model.named_parameters())


@pytest.mark.parametrize("changes", [{"use_dora": True}, {"modules_to_save": ["lm_head"]}, {"bias": "lora_only"}])
def test_adapters_that_are_more_than_one_matrix_a_layer_are_not_merged(changes):
    model = adapted(**changes)
    layer = model.get_base_model().model.layers[0].self_attn.q_proj
    with merged_adapters(model):
        assert not layer.disable_adapters


def test_models_without_adapters_are_left_alone():
    model = small_architecture("llama")
    before = {name: (p.data_ptr(), p.clone()) for name, p in model.named_parameters()}
    with merged_adapters(model):
        inside = {name: p.data_ptr() for name, p in model.named_parameters()}
    for name, p in model.named_parameters():
        assert p.data_ptr() == inside[name] == before[name][0] and torch.equal(p, before[name][1]), name


def test_every_trainer_that_draws_shares_prompts_and_the_manifest_says_so(finished_run):
    said = {
        method: json.loads((finished_run / "6_training" / method / "manifest.json").read_text())["prompts_not_shared"]
        for method in ("disa", "grpo")
    }
    assert said == {"disa": None, "grpo": None}


def test_the_offline_trainer_shares_prompts_too_and_gives_the_plain_way_s_loss(small_run, tmp_path, tokens_of):
    stored, losses, sizes = small_run.offline(), [], []
    for shared in (True, False):
        args = OfflineConfig(
            output_dir=str(tmp_path), max_steps=1, per_device_train_batch_size=16, use_cpu=True, bf16=False,
            report_to="none", save_strategy="no", disable_tqdm=True,
        )  # fmt: skip
        tokenizer = small_run.trainer(tmp_path / "any").processing_class
        trainer = OfflineTrainer(
            trainable_model(small_run.reference), args, stored, forward_loss, processing_class=tokenizer
        )
        assert trainer.prompts_not_shared is None
        if not shared:
            trainer.prompts_not_shared = "as told"
        sizes.append(tokens_of(trainer.model))
        trainer.train()
        losses.append(trainer.state.log_history[0]["train_loss"])
    # float32 passes over some 7 tokens.
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)
    assert len(sizes[0]) == len(sizes[1]) == 1 and sizes[0][0] < sizes[1][0]


def test_an_architecture_that_cannot_share_says_so(caplog, tmp_path):
    space = Space(vocabulary=4, length_limit=4)
    model = OracleForCausalLM(OracleConfig(vocab_size=space.vocabulary, length_limit=space.length_limit))
    args = OfflineConfig(output_dir=str(tmp_path), max_steps=1, use_cpu=True, bf16=False, report_to="none")
    from disa.testing.hf import oracle_tokenizer

    stored = SimpleNamespace(temperature=None)
    trainer = OfflineTrainer(model, args, stored, forward_loss, processing_class=oracle_tokenizer(space))
    assert trainer.prompts_not_shared.startswith("architecture disa_oracle is not one of")
    assert trainer.prompts_not_shared in caplog.text
