"""How much every stage of a recipe has to do: a count, the same on every machine."""

from __future__ import annotations

import dataclasses

from disa.planning.model_shape import ModelShape
from disa.recipe import Recipe
from disa.training.methods import METHODS

_FLOAT32 = 4

_BLOCK_LOGITS = 2**24
"""Logits of one block of :mod:`disa.lm.head`."""

_VERL_TOKENS = 16384
"""verl's default of ``ppo_max_token_len_per_gpu``."""

_STREAMS = {"bridge": 2, "hinted": 2, "tempered": 1, "auto": 2}
"""Passes per token of a blend, in drawing as in scoring; a pilot's choice may need one."""


@dataclasses.dataclass(frozen=True)
class TextLengths:
    """Mean tokens of a recipe's texts."""

    prompt: float
    completion: float
    """Stop token included."""
    demonstration: float
    """Stop token included; what a warmed-up model learns to write. 0 without a warm-up."""

    @property
    def sequence(self) -> float:
        """Prompt and completion."""
        return self.prompt + self.completion


@dataclasses.dataclass(frozen=True)
class StageWork:
    """One stage's work."""

    sequences: int
    """Completions drawn, scored or trained on."""
    tokens: float
    """Prompt and completion tokens of these, each counted once."""
    passes: float
    """Floating-point operations of forward and backward passes over whole sequences."""
    decoding: float
    """Floating-point operations of drawing completions token by token, their prompts included."""
    weights: float
    """Bytes of weights, gradients and moments, which several GPUs can hold in pieces."""
    batch: float
    """Bytes of activations, logits, keys and values, which belong to the GPU that computes them."""
    layer: float = 0.0
    """Bytes of a layer's weights, as a GPU that holds pieces gathers them before use."""

    @property
    def memory(self) -> float:
        """Bytes held at once, all in one place."""
        return self.weights + self.batch

    @property
    def flops(self) -> float:
        """All floating-point operations."""
        return self.passes + self.decoding


def count_work(
    recipe: Recipe, shape: ModelShape, lengths: TextLengths, prompts: dict[str, int], *, checkpointed: bool = False
) -> dict[str, StageWork]:
    """Work of the stages that run the model, by the name of their folder.

    Reference, proposal and policy are taken to be of one size. ``checkpointed`` training keeps the inputs of layers
    alone and computes the rest again, as on CUDA (:func:`disa.lm.hf_trainer.trainer_arguments`). The operations of the
    second forward pass are not counted, as utilisations are quoted without them.
    """
    training, evaluation = recipe.training, recipe.evaluation
    per_sequence = shape.forward_flops(lengths.sequence, lengths.sequence)
    two_models = bool(recipe.warmup.proposal if recipe.warmup else recipe.models.proposal)
    models = 2 if two_models else 1
    limit = recipe.sampling.max_completion_length

    def size(compute: str) -> int:
        """Bytes of a number of a frozen model."""
        return 2 if "bfloat16" in (compute, shape.precision if compute == "checkpoint" else None) else _FLOAT32

    def weights(compute: str) -> float:
        return size(compute) * shape.parameters

    def one(sequences: int, *, passes: float, draws: float, held: float, batch: float, compute: str) -> StageWork:
        return StageWork(
            sequences,
            sequences * lengths.sequence,
            passes * per_sequence * sequences,
            draws * per_sequence * sequences,
            held,
            batch,
            weights(compute) / shape.layers,
        )

    def activations(tokens: float, compute: str, *, trained: bool = False, whole_logits: bool = False) -> float:
        how = {"trained": trained, "whole_logits": whole_logits, "checkpointed": checkpointed}
        return _activation_bytes(shape, tokens, size=size(compute), **how)

    def drawing(rows: int, compute: str) -> float:
        return rows * _cache_bytes(shape, lengths.prompt + limit, size(compute))

    found: dict[str, StageWork] = {}
    if recipe.warmup:
        runs = [run for run in (recipe.warmup.proposal, recipe.warmup.reference) if run]
        tokens = lengths.prompt + lengths.demonstration
        sequences = sum(run.steps for run in runs) * recipe.warmup.batch_size
        found["warmup"] = StageWork(
            sequences,
            sequences * tokens,
            3 * shape.forward_flops(tokens, tokens) * sequences,
            0.0,
            _trained_bytes(shape, lora=False),
            activations(recipe.warmup.batch_size * tokens, "float32", trained=True, whole_logits=True),
        )
    # Rounds belong to the same two stages. An adaptive budget spends as much as a uniform one, and drawing again for
    # flagged prompts at most doubles it in every round.
    uniform = recipe.proposals.model_copy(update={"adaptive": None})
    per_prompt = {split: sum(uniform.counts(split).values()) for split in ("train", "validation", "heldout")}
    per_prompt["train"] *= 2**uniform.resample.rounds if uniform.resample else 1
    drawn = sum(prompts[split] * per_prompt[split] for split in per_prompt)
    streams, share = _STREAMS.get(uniform.source), uniform.reference_share
    found["2_proposals"] = one(
        drawn,
        passes=0,
        draws=share + (1 - share) * (streams or 1),
        # Models take turns in memory, but for the two of a blend.
        held=(models if streams else 1) * weights(uniform.compute),
        batch=drawing(min(drawn, uniform.batch_size), uniform.compute) if uniform.engine == "transformers" else 0,
        compute=uniform.compute,
    )
    scored = min(recipe.scoring.tokens_per_batch, drawn * lengths.sequence)
    found["3_scoring"] = one(
        drawn,
        passes=streams or models,
        draws=0,
        held=(models if streams else 1) * weights(recipe.scoring.compute),
        batch=activations(scored, recipe.scoring.compute),
        compute=recipe.scoring.compute,
    )
    # verl bounds the tokens of a pass, and draws by an engine of its own.
    actor = recipe.verl.get("actor_rollout_ref", {}).get("actor", {})
    drawn_here = not (training.vllm or recipe.verl)
    micro_batch = (training.micro_batch or training.completions_per_step) * lengths.sequence
    at_once = actor.get("ppo_max_token_len_per_gpu", _VERL_TOKENS) if recipe.verl else micro_batch
    optim = training.optim or actor.get("optim", {}).get("optimizer", "")
    for method in training.methods:
        # What is drawn is used several times; of the stored trajectories every step reads others.
        uses = training.method_uses(method) if METHODS[method].generates else 1
        rows = training.optimizer_steps(method) // uses * training.completions_per_step
        row, lora = METHODS[method], training.method_lora(method) is not None
        reference = row.generates and row.reference
        # Forward and backward count three in each step; those of the reference, and of the sampler where completions
        # are used again, one in all; the forward projection is a batch of its own.
        both = method == "disa" and training.offline_share > 0 or method == "disa_both"
        passes = uses * (6 if both else 3) + (1 if reference else 0) + (1 if row.generates and uses > 1 else 0)
        frozen = size(training.compute) if shape.precision == "bfloat16" else _FLOAT32
        held = _trained_bytes(shape, lora=lora, frozen=frozen, optim=optim)
        held += frozen * shape.parameters if reference and not lora else 0
        # Both micro-batches wait for one backward pass.
        batch = activations((2 if both else 1) * at_once, training.compute, trained=True)
        batch += drawing(training.completions_per_step, training.compute) if row.generates and drawn_here else 0
        name, draws = f"6_training/{method}", float(row.generates)
        found[name] = one(rows, passes=passes, draws=draws, held=held, batch=batch, compute=training.compute)
    judged = prompts["heldout"] + min(evaluation.train_prompts, prompts["train"])
    rows = judged * evaluation.samples_per_prompt
    for model in ("reference", *training.methods):
        held = (1 if model == "reference" else 2) * weights(evaluation.compute)
        batch = drawing(min(rows, evaluation.batch_size), evaluation.compute)
        name = f"7_evaluation/{model}"
        found[name] = one(rows, passes=2, draws=1, held=held, batch=batch, compute=evaluation.compute)
    return found


def _cache_bytes(shape: ModelShape, tokens: float, size: int = _FLOAT32) -> float:
    """Keys and values of one sequence, ``size`` bytes a number."""
    return 2 * size * shape.layers * shape.kv_width * tokens


def _activation_bytes(
    shape: ModelShape,
    tokens: float,
    *,
    trained: bool,
    whole_logits: bool,
    checkpointed: bool = False,
    size: int = _FLOAT32,
) -> float:
    """What a pass keeps: a layer's activations (all layers' where a backward pass follows), and the logits.

    34 hidden bytes per token and layer in 16 bits (Korthikanti et al. 2022, arXiv 2205.05198, equation 2 without its
    attention term, which fused attention does not store), twice that in float32. Checkpointed, it is one layer's and
    the 2 hidden bytes per token of every layer's input (section 5, after Chen et al. 2016, arXiv 1604.06174). Whole
    logits come with their log-softmax and its gradient; else there is one block at a time.
    """
    per_token = 34 * (shape.layers if trained and not checkpointed else 1)
    per_token += 2 * shape.layers if trained and checkpointed else 0
    logits = shape.vocabulary * tokens
    held = 3 * logits if whole_logits else min(logits, _BLOCK_LOGITS)
    return size / 2 * per_token * shape.hidden * tokens + _FLOAT32 * held


def _trained_bytes(shape: ModelShape, *, lora: bool, frozen: int = _FLOAT32, optim: str = "") -> float:
    """Weights, gradients and two moments; of adapters the base alone, they are taken to be nothing.

    Trained weights and gradients are float32, and so are AdamW's moments unless the optimiser's name says 8 bit.
    """
    moments = 2 if "8bit" in optim else 2 * _FLOAT32
    return (frozen if lora else 2 * _FLOAT32 + moments) * shape.parameters
