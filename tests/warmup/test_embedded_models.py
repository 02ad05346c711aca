"""Models inside packages: the converted folder is the GGUF's model, made once, and its absence is explained."""

import pytest
import torch

from disa.errors import DisaError
from disa.lm.loading import load_model, load_tokenizer
from disa.lm.log_probs import sequence_log_probs
from disa.warmup import embedded_models
from disa.warmup.base_model import base_model
from disa.warmup.config import WarmupConfig
from disa.warmup.embedded_models import EMBEDDED_MODELS, embedded_model_folder
from tiny_gguf import WORDS, small_model, write_gguf


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "disa"


def test_a_converted_gemma_gives_the_log_probs_of_the_model_its_gguf_was_written_from(tmp_path, monkeypatch, cache):
    original = small_model("gemma3")
    write_gguf(tmp_path / "tiny.gguf", original, "gemma3")
    calls = []

    def find_gguf(scratch):
        calls.append(scratch)
        return tmp_path / "tiny.gguf"

    changed = EMBEDDED_MODELS["gemma3-270m"]._replace(find_gguf=find_gguf)
    monkeypatch.setitem(embedded_models.EMBEDDED_MODELS, "gemma3-270m", changed)

    folder = embedded_model_folder("gemma3-270m")
    assert folder == cache / "gemma3-270m"
    converted, tokenizer = load_model(folder), load_tokenizer(folder)
    assert converted.generation_config.eos_token_id == tokenizer.eos_token_id == 1
    ids = tokenizer("1+2*(3-4)/5")["input_ids"]
    assert ids == [2, *(WORDS.index(c) for c in "1+2*(3-4)/5")]
    # Six completion tokens at up to 20 nats, two float32 passes that add up the same numbers in the same order.
    bound = 6 * 20 * 2.0**-22
    rows = ([ids[:6]], [ids[6:]])
    assert sequence_log_probs(converted, *rows) == pytest.approx(sequence_log_probs(original, *rows), abs=bound)

    model, _ = base_model(WarmupConfig(base="gemma3-270m"), alphabet="")
    assert len(calls) == 1, "converted a second time"
    for mine, theirs in zip(model.parameters(), original.parameters(), strict=True):
        # Adding 1 to a norm's weight below 3 and taking it away again rounds to 24 bits.
        assert torch.allclose(mine, theirs, rtol=0, atol=2.0**-22)
    assert [path.name for path in cache.iterdir()] == ["gemma3-270m"]


@pytest.mark.parametrize("base", EMBEDDED_MODELS)
def test_a_package_that_is_not_installed_is_named_with_the_way_to_get_it(base, monkeypatch, cache):
    monkeypatch.setattr(embedded_models, "find_spec", lambda name: None)
    package = EMBEDDED_MODELS[base].package
    with pytest.raises(
        DisaError, match=f"warmup.base is {base} but the package {package} is not installed.*Fix: make "
    ):
        embedded_model_folder(base)
    assert not cache.exists()
