"""The cluster's training peer: PyTorch's DistributedDataParallel over gloo, one process of it.

argv[1] is a JSON object: as torch_train.py's, and rank, world, seconds, hook (none or bf16). The
rendezvous comes from MASTER_ADDR, MASTER_PORT and GLOO_SOCKET_IFNAME. `batch` is that of the whole
step, cut evenly over the ranks. Rank 0 prints {"tokens_per_second": ..., "steps": ...}.
"""
import json
import os
import sys
import time

import torch
import torch.distributed as dist
from torch.distributed.algorithms.ddp_comm_hooks import default_hooks
from torch.nn.parallel import DistributedDataParallel

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
from torch_train import Gpt  # noqa: E402


def main():
    spec = json.loads(sys.argv[1])
    torch.manual_seed(1)
    torch.set_num_threads(spec["threads"])
    dist.init_process_group("gloo", rank=spec["rank"], world_size=spec["world"])
    model = Gpt(spec)
    run = DistributedDataParallel(model, gradient_as_bucket_view=True, static_graph=True)
    if spec["hook"] == "bf16":
        run.register_comm_hook(None, default_hooks.bf16_compress_hook)
    optimiser = torch.optim.AdamW(model.parameters(), lr=1e-4, betas=(0.9, 0.95), fused=True)
    batch = spec["batch"] // spec["world"]
    data = [torch.randint(0, spec["vocab"], (batch, spec["block"] + 1)) for _ in range(16)]

    def step(i):
        ids = data[i % len(data)]
        with torch.autocast("cpu", torch.bfloat16, enabled=spec["format"].startswith("bf16")):
            loss = run(ids[:, :-1].contiguous(), ids[:, 1:].contiguous())
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        optimiser.zero_grad(set_to_none=False)

    for i in range(5):
        step(i)
    dist.barrier()
    begin, steps, on = time.monotonic(), 0, torch.ones(1)
    while on.item():
        step(steps)
        steps += 1
        if steps % 5 == 0:  # rank 0's watch is everybody's
            on.fill_(float(time.monotonic() - begin < spec["seconds"]))
            dist.broadcast(on, 0)
    took = time.monotonic() - begin
    if spec["rank"] == 0:
        tokens = steps * spec["batch"] * spec["block"]
        print(json.dumps({"tokens_per_second": tokens / took, "steps": steps}), flush=True)
    dist.destroy_process_group()


main()
