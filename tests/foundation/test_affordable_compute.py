"""bfloat16 is used where the processor has it; a CPU that would emulate it computes in float32 and says so."""

import logging

import pytest
import torch

from disa.lm import loading as engine


@pytest.fixture
def cpu_with(monkeypatch):
    """Make this machine a CPU of the given capabilities."""

    def pretend(capabilities):
        monkeypatch.setattr(engine, "default_device", lambda: torch.device("cpu"))
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: capabilities, raising=False)
        engine._emulates_bfloat16.cache_clear()

    yield pretend
    engine._emulates_bfloat16.cache_clear()


def test_a_cpu_without_bfloat16_computes_in_float32_and_says_so_once(cpu_with, caplog):
    cpu_with({"avx2": True, "avx512_bf16": False, "amx_bf16": False, "architecture": "x86_64"})
    with caplog.at_level(logging.WARNING):
        assert [engine.effective_precision("bfloat16", "unread") for _ in range(3)] == ["float32"] * 3
    assert [r.getMessage() for r in caplog.records if "bfloat16" in r.getMessage()] == [
        "bfloat16 is asked for, and this CPU has no bfloat16 arithmetic: float32 is used, faster here"
    ]


@pytest.mark.parametrize("flag", ["avx512_bf16", "amx_bf16", "bf16"])
def test_a_cpu_with_bfloat16_uses_it(cpu_with, flag):
    cpu_with({"avx2": True, flag: True})
    assert engine.effective_precision("bfloat16", "unread") == "bfloat16"


def test_a_gpu_uses_it_whatever_its_cpu_has(cpu_with, monkeypatch):
    cpu_with({"avx512_bf16": False})
    monkeypatch.setattr(engine, "default_device", lambda: torch.device("cuda"))
    assert engine.effective_precision("bfloat16", "unread") == "bfloat16"


def test_float32_stays_float32(cpu_with):
    cpu_with({"avx512_bf16": True})
    assert engine.effective_precision("float32", "unread") == "float32"
