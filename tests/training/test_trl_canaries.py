"""What DISA relies on in TRL: a test that fails here says what a new release changed."""

import ast
import importlib
import inspect
import pkgutil
import textwrap

import pytest
from small_trainer import RecordingTrainer
from trl import GRPOConfig, GRPOTrainer

import disa.training
from disa.training.balance_trainer import BalanceTrainer
from disa.training.disa_config import _REFUSED, _UNREAD, DISAConfig
from disa.training.trainer import DISATrainer

# Parameters by which the overridden methods are called, and those by which the project calls the engine.
SIGNATURES = {
    "_calculate_rewards": ["self", "inputs", "prompts", "completions", "completion_ids_list"],
    "_generate_and_score_completions": ["self", "inputs"],
    "_generate_single_turn": [
        "self",
        "prompt_ids",
        "images",
        "multimodal_fields",
        "num_generations",
        "has_tool_images",
    ],
    "compute_loss": ["self", "model", "inputs", "return_outputs", "num_items_in_batch"],
    "log": ["self", "logs", "start_time"],
}
CONSTRUCTOR = {
    "model",
    "reward_funcs",
    "args",
    "train_dataset",
    "eval_dataset",
    "processing_class",
    "reward_processing_classes",
    "callbacks",
    "optimizers",
    "peft_config",
}
BATCH = {"prompt_ids", "prompt_mask", "completion_ids", "completion_mask", "ref_per_token_logps"}


@pytest.mark.parametrize(("method", "parameters"), SIGNATURES.items(), ids=SIGNATURES.keys())
def test_an_overridden_method_has_the_engine_s_signature(method, parameters):
    for trainer in (GRPOTrainer, DISATrainer):
        found = list(inspect.signature(getattr(trainer, method)).parameters)
        assert found == parameters, f"{trainer.__name__}.{method} changed: {found}; see the override in DISATrainer"


def test_the_engine_s_constructor_takes_what_disa_passes_on():
    missing = CONSTRUCTOR - set(inspect.signature(GRPOTrainer.__init__).parameters)
    assert not missing, f"GRPOTrainer.__init__ no longer takes {missing}; see BalanceTrainer.__init__"
    assert set(inspect.signature(BalanceTrainer.__init__).parameters) >= CONSTRUCTOR


def test_the_engine_s_log_prob_method_is_called_as_it_is_declared():
    method = GRPOTrainer._get_per_token_logps_and_entropies
    found = list(inspect.signature(method).parameters)
    message = f"_get_per_token_logps_and_entropies changed: {found}; see BalanceTrainer.sequence_log_probs"
    expected = ["self", "model", "input_ids", "attention_mask", "logits_to_keep", "batch_size", "compute_entropy"]
    assert found[:7] == expected, message
    assert list(inspect.signature(DISATrainer._get_per_token_logps_and_entropies).parameters)[:7] == expected


def test_the_loss_is_still_computed_in_compute_loss():
    called = {node.attr for node in ast.walk(_tree(GRPOTrainer.compute_loss)) if isinstance(node, ast.Attribute)}
    assert "_compute_loss" in called, "GRPOTrainer.compute_loss no longer is the one place that computes the loss"


def test_refused_settings_exist_and_their_neutral_values_are_the_defaults():
    fields = GRPOConfig.__dataclass_fields__
    assert set(_REFUSED) <= set(fields), f"GRPOConfig lost {set(_REFUSED) - set(fields)}; see _REFUSED"
    assert set(_UNREAD) <= set(fields), f"GRPOConfig lost {set(_UNREAD) - set(fields)}; see _UNREAD"
    fields = DISAConfig.__dataclass_fields__
    assert {name: fields[name].default for name in _REFUSED} == {
        name: neutral for name, (neutral, _) in _REFUSED.items()
    }


def test_the_engine_has_every_attribute_and_gives_every_tensor_that_disa_reads(small_run, tmp_path):
    trainer = small_run.trainer(tmp_path, trainer_class=RecordingTrainer)
    trainer.train()
    trees = [_tree(trainer) for trainer in (BalanceTrainer, DISATrainer)]
    own = {node.attr for tree in trees for node in ast.walk(tree) if _is_self_attribute(node)}
    # What the trainers set themselves is no attribute of the engine's.
    stored = {node.attr for tree in trees for node in ast.walk(tree) if _is_self_attribute(node) and _stores(node)}
    missing = {name for name in own - stored if not hasattr(trainer, name)}
    assert not missing, f"the engine no longer has {missing}"
    # The list says that the search above finds what matters.
    assert {"current_gradient_accumulation_steps", "_metrics", "reward_weights", "eos_token_ids", "ref_model"} <= own
    inputs, _ = trainer.losses[0]
    assert set(inputs) >= BATCH, f"the engine's batch lacks {BATCH - set(inputs)}"
    assert set(inputs) >= {"raw_reward", "log_z", "group"}


def _subclasses():
    """Every class of the training stage that derives from the engine's trainer."""
    for module in pkgutil.iter_modules(disa.training.__path__, "disa.training."):
        for value in vars(importlib.import_module(module.name)).values():
            if inspect.isclass(value) and issubclass(value, GRPOTrainer) and value.__module__ == module.name:
                yield value


def test_every_override_of_the_engine_calls_super_but_the_loss_and_the_card():
    assert DISATrainer in _subclasses()
    for trainer in _subclasses():
        overrides = [n for n, f in vars(trainer).items() if inspect.isfunction(f) and hasattr(GRPOTrainer, n)]
        for name in set(overrides) - {"compute_loss", "create_model_card"}:
            calls = {ast.unparse(call.func) for call in ast.walk(_tree(trainer)) if isinstance(call, ast.Call)}
            assert f"super().{name}" in calls, f"{trainer.__name__}.{name} replaces the engine's body"


def test_no_passage_of_the_engine_is_copied():
    # Three equal statements in a row are a copied passage; what both must write, such as a cat, comes alone.
    engine = _statements(_tree(GRPOTrainer))
    passages = {tuple(engine[i : i + 3]) for i in range(len(engine) - 2)}
    for trainer in _subclasses():
        own = _statements(_tree(trainer))
        copied = passages & {tuple(own[i : i + 3]) for i in range(len(own) - 2)}
        assert not copied, f"{trainer.__name__} copies {copied}"


def _tree(code):
    return ast.parse(textwrap.dedent(inspect.getsource(code)))


def _statements(tree):
    simple = (ast.Assign, ast.AugAssign, ast.Return, ast.Expr, ast.Raise)
    return [ast.unparse(node) for node in ast.walk(tree) if isinstance(node, simple)]


def _stores(node):
    return isinstance(node.ctx, ast.Store)


def _is_self_attribute(node):
    return isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "self"
