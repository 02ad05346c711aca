"""A graded reward of one's own: an object with settings, a range, a fingerprint, and completions it cannot judge.

python examples/own_reward.py MODEL DATA.jsonl OUTPUT
"""

import sys

from datasets import load_dataset

import disa


class Brevity:
    """From 1 for an empty completion down to -1 at ``longest`` characters; an empty line cannot be judged."""

    def __init__(self, longest):
        self.longest = longest
        # Changed whenever the object would compute something else: log Z holds for one reward.
        self.fingerprint = f"brevity/1 longest={longest}"

    def __call__(self, completions, **_):
        """One number per completion, None where it is undecided: such a completion is counted and left out."""
        return [None if c == "\n" else 1 - 2 * min(len(c) / self.longest, 1) for c in completions]


if __name__ == "__main__":
    model, data, output = sys.argv[1:]
    args = disa.CalibrationConfig(output, inverse_temperature=2, reward_range=[-1, 1], max_completion_length=16)
    anchor = disa.calibrate(model, Brevity(longest=20), load_dataset("json", data_files=data)["train"], args)
    for prompt_id, row in anchor.estimates.items():
        print(f"{prompt_id}  log Z {row.log_z:6.3f}  interval [{row.interval_low:.3f}, {row.interval_high:.3f}]")
