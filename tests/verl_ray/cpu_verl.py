"""What verl lacks to run without accelerators: a platform, an engine on it, a rollout by transformers.

verl's workers import this module by ``VERL_USE_EXTERNAL_MODULES``. It changes nothing of the method: trainer, agent
loops, reward workers, FSDP2 engine, losses, optimiser and checkpoints are verl's own.
"""

import asyncio
import contextlib
import json
import os
import types
from datetime import timedelta
from pathlib import Path

import ray
import torch
from verl.plugin.platform.platform_base import PlatformBase
from verl.plugin.platform.platform_manager import PlatformRegistry

SAMPLES = "DISA_TEST_SAMPLES"
"""Folder that gets a line per sampled completion."""


class Device(types.ModuleType):
    """``torch.cuda``'s names for the CPU: what it lacks does nothing and measures nothing."""

    get_rng_state = staticmethod(torch.get_rng_state)
    set_rng_state = staticmethod(torch.set_rng_state)
    manual_seed = manual_seed_all = staticmethod(torch.manual_seed)
    is_available = staticmethod(lambda: True)
    device_count = staticmethod(lambda: 1)
    current_device = staticmethod(lambda: "cpu")
    mem_get_info = staticmethod(lambda: (1 << 30, 1 << 30))
    get_device_name = staticmethod(lambda: "cpu")
    max_memory_allocated = max_memory_reserved = memory_allocated = memory_reserved = staticmethod(lambda: 0)
    set_device = synchronize = empty_cache = ipc_collect = staticmethod(lambda *args: None)


@PlatformRegistry.register(platform="cpu")
class CpuPlatform(PlatformBase):
    """Processes that share one machine; Ray counts a made-up GPU per node."""

    device_name = vendor_name = "cpu"
    device_module = Device("cpu_device")

    def is_available(self):
        return True

    def current_device(self):
        return "cpu"

    def device_count(self):
        return 1

    def set_device(self, device_index):
        pass

    def synchronize(self, device_index=None):
        pass

    def manual_seed(self, seed):
        torch.manual_seed(seed)

    def manual_seed_all(self, seed):
        torch.manual_seed(seed)

    def set_allocator_settings(self, settings):
        pass

    def empty_cache(self):
        pass

    def get_device_capability(self, device_index=0):
        return None, None

    def communication_backend_name(self):
        return "gloo"

    def visible_devices_envvar(self):
        return "CUDA_VISIBLE_DEVICES"

    def nvtx_range(self, msg):
        return contextlib.nullcontext()

    def profiler_start(self):
        pass

    def profiler_stop(self):
        pass

    def ray_resource_name(self):
        return "GPU"

    def ray_noset_envvars(self):
        return ["RAY_EXPERIMENTAL_NOSET_CUDA_VISIBLE_DEVICES"]

    def is_ipc_supported(self):
        return False

    def cudart(self):
        return None


# From here on verl asks for the platform while it is imported.
import verl.workers.engine.fsdp.transformer_impl as fsdp  # noqa: E402
import verl.workers.engine_workers as engine_workers  # noqa: E402
from verl.workers.engine import EngineRegistry  # noqa: E402
from verl.workers.rollout import base as rollout_base  # noqa: E402
from verl.workers.rollout.base import BaseRollout  # noqa: E402
from verl.workers.rollout.replica import RolloutReplica, RolloutReplicaRegistry, TokenOutput  # noqa: E402

EngineRegistry.register(model_type="language_model", backend=["fsdp2"], device="cpu")(fsdp.FSDPEngineWithLMHead)


def process_group(timeout_second=None, backend=None):
    """verl asks for 'cpu:gloo,cpu:gloo', which torch refuses: the device stands twice."""
    if not torch.distributed.is_initialized():
        torch.distributed.init_process_group(
            backend="gloo",
            rank=int(os.environ["RANK"]),
            world_size=int(os.environ["WORLD_SIZE"]),
            timeout=timedelta(seconds=timeout_second or 300),
            init_method=os.environ.get("DIST_INIT_METHOD"),
        )


engine_workers.initialize_global_process_group_ray = process_group
# The reference is offloaded to the CPU, where it is, through pinned memory, which needs an accelerator.
fsdp.CPUOffloadPolicy = lambda pin_memory: None


@ray.remote
class Sampler:
    """Samples token by token from softmax(logits / T) with the weights it was last given."""

    def __init__(self, path, stops, limit, seed):
        from transformers import AutoModelForCausalLM

        torch.set_num_threads(1)
        self.model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32).eval()
        self.stops, self.limit, self.step = stops, limit, None
        self.generator = torch.Generator().manual_seed(seed)
        self.log = Path(os.environ[SAMPLES]) / f"{ray.get_runtime_context().get_node_id()}-{os.getpid()}.jsonl"

    def update(self, weights, step):
        self.model.load_state_dict(weights, strict=False)
        self.model.tie_weights()
        self.step = step

    @torch.no_grad()
    def generate(self, request_id, prompt_ids, sampling_params, **others):
        """Return what verl's agent loop asks for; settings that it cannot obey are refused."""
        assert (sampling_params["top_p"], sampling_params["top_k"]) == (1.0, -1), sampling_params
        ids, said = list(prompt_ids), []
        while len(said) < self.limit and (not said or ids[-1] not in self.stops):
            logits = self.model(torch.tensor([ids])).logits[0, -1] / sampling_params["temperature"]
            token = torch.multinomial(logits.softmax(0), 1, generator=self.generator).item()
            said.append(logits.log_softmax(0)[token].item())
            ids.append(token)
        line = {"step": self.step, "prompt_ids": list(prompt_ids), "completion_ids": ids[len(prompt_ids) :]}
        with self.log.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line | {"log_probs": said}) + "\n")
        return TokenOutput(
            token_ids=ids[len(prompt_ids) :],
            log_probs=said,
            stop_reason="completed",
            extra_fields={"global_steps": self.step},
        )

    def idle(self, *args, **kwargs):
        """Nothing to free and nothing to load."""

    sleep = wake_up = clear_kv_cache = release_kv_cache = resume_kv_cache = idle
    abort_all_requests = resume_generation = start_profile = stop_profile = idle


class CpuReplica(RolloutReplica):
    """One sampler beside each training process, on its node."""

    async def launch_servers(self):
        node = await self.workers[0].__ray_call__.remote(lambda self: ray.get_runtime_context().get_node_id())
        place = ray.util.scheduling_strategies.NodeAffinitySchedulingStrategy(node_id=node, soft=False)
        from transformers import GenerationConfig

        end = GenerationConfig.from_pretrained(self.model_config.path).eos_token_id
        server = Sampler.options(scheduling_strategy=place, num_cpus=0, name=f"sampler-{self.replica_rank}").remote(
            self.model_config.path,
            end if isinstance(end, list) else [end],
            self.config.response_length,
            seed=self.replica_rank,
        )
        await server.idle.remote()
        self.servers, self._server_handle, self._server_address = [server], server, f"sampler-{self.replica_rank}"


class CpuRollout(BaseRollout):
    """Sends the training process's weights to its sampler."""

    async def resume(self, tags):
        pass

    async def release(self):
        pass

    async def update_weights(self, weights, wire_format="named_tensors", global_steps=None, **kwargs):
        state = {name: tensor.detach().float().cpu().clone() for name, tensor in weights}
        server = ray.get_actor(f"sampler-{os.environ['RANK']}")
        await asyncio.wrap_future(server.update.remote(state, global_steps).future())


RolloutReplicaRegistry.register("transformers", lambda: CpuReplica)
rollout_base._ROLLOUT_REGISTRY["transformers", "async"] = f"{__name__}.CpuRollout"

if "DISA_TEST_OTHER_REWARD" in os.environ:
    from disa.tasks.graph_coloring import GraphColoring

    GraphColoring.version = 999
