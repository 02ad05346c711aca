"""Choose the engines of a recipe."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from transformers import PreTrainedTokenizerBase as Tokenizer

from disa.lm.loading import load_generation_config, stated_precision
from disa.lm.sampling_config import SamplingConfig, declared_stop_token_ids
from disa.proposals.config import ProposalsConfig
from disa.proposals.imported import ImportedTrajectories
from disa.proposals.openai_engine import OpenAIEngine
from disa.proposals.protocol import Engine
from disa.proposals.vllm_engine import VLLMEngine
from disa.runs.records import Prompt


def make_engines(
    config: ProposalsConfig,
    sampling: SamplingConfig,
    prompts: list[Prompt],
    paths: Mapping[str, Path | str],
    tokenizer: Tokenizer,
) -> dict[str, Engine]:
    """Engine of each source that transformers does not draw.

    Raises DisaError where an engine is not installed or a file cannot be imported.
    """
    if config.engine == "transformers":
        return {}
    stops = declared_stop_token_ids(load_generation_config(paths["reference"]), tokenizer)
    if config.engine == "import":
        return {"proposal": ImportedTrajectories(config.files, prompts, tokenizer, sampling, stops)}
    if config.engine == "openai":
        assert config.openai is not None  # the settings refuse this engine without it
        servers = {"reference": config.openai.reference, "proposal": config.openai.proposal}
        return {
            source: OpenAIEngine(endpoint, sampling, stops, tokenizer, config.openai)
            for source, endpoint in servers.items()
            if endpoint
        }
    models = {
        path: VLLMEngine(path, sampling, stops, stated_precision(config.compute, path), config.vllm)
        for path in map(str, paths.values())
    }
    return {source: models[str(path)] for source, path in paths.items()}
