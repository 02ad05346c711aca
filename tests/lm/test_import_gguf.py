"""``disa import-gguf``: the folder is the file's model, and a file that it could not express is refused."""

import hashlib
import json

import numpy as np
import pytest
import torch
from safetensors import safe_open
from transformers import AutoModelForCausalLM

from disa.cli.main import main
from disa.errors import DisaError
from disa.lm import import_gguf as module
from disa.lm.import_gguf import ARCHITECTURES, import_gguf
from disa.lm.loading import load_generation_config, load_model, load_tokenizer
from disa.lm.log_probs import sequence_log_probs
from tiny_gguf import WORDS, small_model, write_gguf

gguf = pytest.importorskip("gguf", reason="the optional package gguf is not installed")
CHAT = "{% for m in messages %}<bos>{{ m['content'] }}{% endfor %}"


@pytest.fixture
def written(tmp_path):
    """Writes a file and says where."""

    def write(kind="qwen2", model=None, **how):
        path = tmp_path / "tiny.gguf"
        write_gguf(path, model or small_model(kind), kind, **how)
        return path

    return write


@pytest.mark.parametrize("kind", ARCHITECTURES)
def test_the_folder_gives_the_log_probs_of_the_model_that_was_written(kind, written, tmp_path):
    original = small_model(kind)
    import_gguf(written(kind, original), tmp_path / "model", dtype="float32")
    converted = load_model(tmp_path / "model")
    assert type(converted) is type(original)
    # Gemma alone: adding 1 to a norm's weight below 3 and taking it away again rounds to 24 bits.
    bound = 2.0**-22 if kind == "gemma3" else 0
    for (name, mine), theirs in zip(converted.named_parameters(), original.parameters(), strict=True):
        assert torch.allclose(mine, theirs, rtol=0, atol=bound), name
    rows = ([[2, 5, 14, 6]], [[8, 15, 9, 16, 4, 1]])
    # Six completion tokens at up to 20 nats, two float32 passes that add up the same numbers in the same order.
    bound = 6 * 20 * 2.0**-22
    assert sequence_log_probs(converted, *rows) == pytest.approx(sequence_log_probs(original, *rows), abs=bound)


@pytest.mark.parametrize("kind", ARCHITECTURES)
def test_the_weights_are_those_that_transformers_reads_from_the_file(kind, written, tmp_path):
    path = written(kind)
    import_gguf(path, tmp_path / "model", dtype="float32")
    theirs = AutoModelForCausalLM.from_pretrained(path.parent, gguf_file=path.name, dtype=torch.float32)
    read = dict(theirs.named_parameters())
    for name, mine in load_model(tmp_path / "model").named_parameters():
        assert torch.equal(mine, read[name]), name


def test_two_tables_of_one_embedding_are_tied_again_and_the_finer_is_kept(written, tmp_path):
    original = small_model("qwen2")
    path = written("qwen2", original, tables={"token_embd.weight": "Q4_0", "output.weight": "Q8_0"})
    facts = import_gguf(path, tmp_path / "model", dtype="float32")
    converted = load_model(tmp_path / "model")
    assert converted.lm_head.weight is converted.model.embed_tokens.weight
    table = original.model.embed_tokens.weight.detach().numpy()
    kept = gguf.dequantize(gguf.quantize(table, kind := gguf.GGMLQuantizationType.Q8_0), kind)
    assert np.array_equal(converted.lm_head.weight.numpy(), kept)
    assert facts["tied"] and 0 < facts["tables_differ_by"] < module.TIED
    assert facts["weights"] == sum(parameter.numel() for parameter in original.parameters())


def test_unrelated_tables_stay_two(written, tmp_path):
    original = small_model("qwen2")
    original.config.tie_word_embeddings = False
    original.lm_head.weight = torch.nn.Parameter(torch.randn_like(original.lm_head.weight))
    facts = import_gguf(written("qwen2", original), tmp_path / "model", dtype="float32")
    converted = load_model(tmp_path / "model")
    assert torch.equal(converted.lm_head.weight, original.lm_head.weight)
    assert torch.equal(converted.model.embed_tokens.weight, original.model.embed_tokens.weight)
    assert not facts["tied"] and facts["tables_differ_by"] > 1


def test_the_folder_says_what_it_was_made_of(written, tmp_path):
    path = written()
    import_gguf(path, tmp_path / "model", dtype="float16")
    said = json.loads((tmp_path / "model" / "gguf.json").read_text())
    assert said["sha256"] == hashlib.sha256(path.read_bytes()).hexdigest()
    assert said["says"]["general.name"] == "tiny" and said["says"]["general.architecture"] == "qwen2"
    assert said["stored"] == {"F32": len(gguf.GGUFReader(path).tensors)}
    config = json.loads((tmp_path / "model" / "config.json").read_text())
    assert said["dtype"] == config["dtype"] == "float16" and said["tables_differ_by"] is None


def test_tokenizer_chat_template_and_stop_tokens_come_along(written, tmp_path):
    path = written(strings=[("tokenizer.chat_template", CHAT)])
    import_gguf(path, tmp_path / "model", stops=["<pad>"])
    tokenizer = load_tokenizer(tmp_path / "model")
    rendered = tokenizer.apply_chat_template([{"role": "user", "content": "1()3"}], return_dict=True)["input_ids"]
    assert rendered == [2, *(WORDS.index(c) for c in ("1", "()", "3"))]  # the file's one merge
    assert load_generation_config(tmp_path / "model").eos_token_id == [1, 0]


def test_weights_are_written_in_shards_below_a_bound(written, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "_SHARD", 20_000)
    monkeypatch.setattr(module, "_ROWS", 5)  # no divisor of any shape
    original = small_model("qwen2")
    import_gguf(written("qwen2", original), tmp_path / "model", dtype="float32")
    shards = sorted((tmp_path / "model").glob("*.safetensors"))
    sizes = []
    for shard in shards:
        with safe_open(shard, "pt") as file:
            sizes.append(sum(file.get_tensor(name).nbytes for name in file.keys()))
    assert len(shards) > 2 and max(sizes) <= 20_000
    converted = load_model(tmp_path / "model").state_dict()
    assert all(torch.equal(converted[name], weight) for name, weight in original.state_dict().items())


def refusal(path, folder, **how):
    with pytest.raises(DisaError) as caught:
        import_gguf(path, folder, **how)
    assert not folder.exists() and not list(folder.parent.glob(".*")), "something was left behind"
    return str(caught.value)


def test_another_file_is_refused_by_its_first_bytes(tmp_path):
    (tmp_path / "model.safetensors").write_bytes(b"\x10\0\0\0\0\0\0\0{}")
    assert "starts with b'\\x10\\x00\\x00\\x00', expected b'GGUF'" in refusal(
        tmp_path / "model.safetensors", tmp_path / "model"
    )


@pytest.mark.parametrize("share", [0.01, 0.1, 0.3, 0.9, 0.999])
def test_a_file_that_was_cut_off_is_refused(share, written, tmp_path):
    whole = written().read_bytes()
    (tmp_path / "cut.gguf").write_bytes(whole[: int(share * len(whole))])
    said = refusal(tmp_path / "cut.gguf", tmp_path / "model")
    assert "cut.gguf: the GGUF is cut off or damaged" in said and "compare its SHA-256" in said


def test_an_architecture_that_is_not_supported_is_named(written, tmp_path):
    said = refusal(written(architecture="bloom"), tmp_path / "model")
    assert "architecture bloom, supported are gemma3, llama, qwen2, qwen3" in said


def test_a_tensor_that_the_folder_has_no_place_for_is_named(written, tmp_path):
    path = written("llama", more=[("rope_freqs.weight", np.ones(4, np.float32))])
    assert "holds rope_freqs.weight, which LlamaForCausalLM has no place for" in refusal(path, tmp_path / "model")


def test_scaled_positions_are_refused(written, tmp_path):
    path = written(strings=[("qwen2.rope.scaling.type", "yarn")])
    assert "rotary positions scaled by qwen2.rope.scaling.type yarn" in refusal(path, tmp_path / "model")


def test_a_stop_token_that_the_vocabulary_lacks_is_named(written, tmp_path):
    assert "no token '<|end|>'" in refusal(written(), tmp_path / "model", stops=["<|end|>"])


def test_the_command_converts_and_refuses_a_folder_that_exists(written, tmp_path, capsys):
    arguments = ["import-gguf", str(written()), str(tmp_path / "model"), "--dtype", "float32"]
    assert main(arguments) == 0
    assert "embeddings tied" in (said := capsys.readouterr().out) and "weights in float32" in said
    before = sorted(path.stat().st_mtime_ns for path in (tmp_path / "model").iterdir())
    assert main(arguments) == 2
    assert capsys.readouterr().err.strip().endswith("the folder exists. Fix: name another one, or remove it")
    assert sorted(path.stat().st_mtime_ns for path in (tmp_path / "model").iterdir()) == before
