"""What it takes to train a random model for a step or two: a tokenizer, a reward, and a clock."""

from __future__ import annotations

import time
from typing import Any

from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast, PrinterCallback, Trainer, TrainerCallback

from paired import Seconds


def word_tokenizer(vocabulary: int) -> PreTrainedTokenizerFast:
    """One token per word: w2, w3, ..."""
    words = {"<pad>": 0, "<eos>": 1} | {f"w{i}": i for i in range(2, vocabulary)}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="<pad>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", eos_token="<eos>", padding_side="left"
    )


def reward(completions: list[str], **_: Any) -> list[float]:
    """Anything that differs between completions."""
    return [float(hash(text) % 2) for text in completions]


class Watch(TrainerCallback):
    """Times optimiser steps: the first warms up, the last counts."""

    def __init__(self) -> None:
        self.marks: list[Seconds] = []

    def on_step_begin(self, *_: Any, **__: Any) -> None:
        """Note the time before sampling: the engine samples inside the step."""
        self.marks.append(now())

    def on_step_end(self, *_: Any, **__: Any) -> None:
        """Note the time behind the optimiser's update."""
        self.marks.append(now())

    @property
    def last_step(self) -> Seconds:
        """Seconds of the last step."""
        begin, end = self.marks[-2:]
        return Seconds(end.wall - begin.wall, end.cpu - begin.cpu)


def now() -> Seconds:
    """Clocks of the wall and of the processor."""
    return Seconds(time.perf_counter(), time.process_time())


def last_step(trainer: Trainer) -> Seconds:
    """Train to the end, and say how long the last step took."""
    watch = Watch()
    trainer.add_callback(watch)
    trainer.remove_callback(PrinterCallback)
    trainer.train()
    return watch.last_step
