"""A sequence classifier as a reward function, asked as TRL asks it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer, PreTrainedModel

from disa.lm.loading import refuse_unloadable
from disa.tasks.reward_identity import reward_fingerprint

BATCH = 16


class RewardModel:
    """First logit of a sequence classifier with one label on prompt and completion.

    The tokenizer is by default the one beside the model; ``chat_template_kwargs`` serve prompts that are messages.
    Completions of one length form a batch, so that none is padded: a reward does not depend on its neighbours.
    """

    def __init__(
        self, model: str | PreTrainedModel, processing_class: Any, chat_template_kwargs: Mapping[str, Any]
    ) -> None:
        if isinstance(model, str):
            with refuse_unloadable(model):
                model = AutoModelForSequenceClassification.from_pretrained(model, num_labels=1, dtype=torch.float32)
        self._model = model.eval()
        self._tokenizer = processing_class or AutoTokenizer.from_pretrained(model.config._name_or_path)
        self._template = dict(chat_template_kwargs)
        self.fingerprint = reward_fingerprint([model], [1.0])

    def __call__(self, prompts: list[Any], completions: list[Any], **_: Any) -> list[float]:
        """Rewards in the order of the completions."""
        ids = [self._encoded(prompt, completion) for prompt, completion in zip(prompts, completions, strict=True)]
        order = sorted(range(len(ids)), key=lambda i: len(ids[i]))
        rewards = [0.0] * len(ids)
        while order:
            same = [i for i in order[:BATCH] if len(ids[i]) == len(ids[order[0]])]
            order = order[len(same) :]
            with torch.inference_mode():
                logits = self._model(torch.tensor([ids[i] for i in same], device=self._model.device)).logits
            for i, reward in zip(same, logits[:, 0].float().tolist(), strict=True):
                rewards[i] = reward
        return rewards

    def _encoded(self, prompt: Any, completion: Any) -> list[int]:
        if isinstance(prompt, str):
            text = prompt + completion
        else:
            text = self._tokenizer.apply_chat_template(prompt + completion, tokenize=False, **self._template)
        return self._tokenizer(text, add_special_tokens=False)["input_ids"]
