"""The training peer: a GPT-2 or a Llama in plain PyTorch, whole optimiser steps on random tokens.

argv[1] is a JSON object: layers, heads, width, block, batch, vocab, threads, format (bf16,
bf16-compile or fp32), device (cpu, if it is not there, or cuda) and, for a Llama, kv_heads and hidden. Prints one line when ready; then
for each line with a number of seconds on stdin it trains that long and prints the median, 10th and
90th percentile of tokens/s.
"""
import json
import statistics
import sys
import time

import torch
from torch import nn
from torch.nn import functional


class Block(nn.Module):
    def __init__(self, width, heads):
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x):
        batch, length, width = x.shape
        split = (batch, length, self.heads, width // self.heads)
        q, k, v = (part.view(split).transpose(1, 2) for part in self.qkv(self.norm1(x)).split(width, 2))
        mixed = functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.out(mixed.transpose(1, 2).reshape(batch, length, width))
        return x + self.down(functional.gelu(self.up(self.norm2(x)), approximate="tanh"))


class Gpt(nn.Module):
    def __init__(self, spec):
        super().__init__()
        width = spec["width"]
        self.tokens, self.positions = nn.Embedding(spec["vocab"], width), nn.Embedding(spec["block"], width)
        self.blocks = nn.ModuleList(Block(width, spec["heads"]) for _ in range(spec["layers"]))
        self.norm = nn.LayerNorm(width)
        for parameter in self.parameters():
            if parameter.dim() >= 2:
                nn.init.normal_(parameter, std=0.02)

    def forward(self, ids, targets):
        x = self.tokens(ids) + self.positions(torch.arange(ids.shape[1], device=ids.device))
        for block in self.blocks:
            x = block(x)
        logits = functional.linear(self.norm(x), self.tokens.weight)  # the head is tied
        return functional.cross_entropy(logits.view(-1, logits.shape[-1]), targets.reshape(-1))


class LlamaBlock(nn.Module):
    def __init__(self, spec):
        super().__init__()
        width, self.heads, self.kv_heads = spec["width"], spec["heads"], spec["kv_heads"]
        self.dim = width // self.heads
        linear = lambda inputs, outputs: nn.Linear(inputs, outputs, bias=False)
        self.norm1, self.norm2 = nn.RMSNorm(width), nn.RMSNorm(width)
        self.qkv, self.out = linear(width, (self.heads + 2 * self.kv_heads) * self.dim), linear(width, width)
        self.gate_up, self.down = linear(width, 2 * spec["hidden"]), linear(spec["hidden"], width)

    def turned(self, x, cos, sin):
        low, high = x.chunk(2, -1)
        return (x * cos + torch.cat((-high, low), -1) * sin).type_as(x)

    def forward(self, x, cos, sin):
        batch, length, width = x.shape
        heads = self.qkv(self.norm1(x)).view(batch, length, -1, self.dim).transpose(1, 2)
        q, k, v = heads.split((self.heads, self.kv_heads, self.kv_heads), 1)
        mixed = functional.scaled_dot_product_attention(self.turned(q, cos, sin), self.turned(k, cos, sin), v,
                                                        is_causal=True, enable_gqa=True)
        x = x + self.out(mixed.transpose(1, 2).reshape(batch, length, width))
        gate, up = self.gate_up(self.norm2(x)).chunk(2, -1)
        return x + self.down(functional.silu(gate) * up)


class Llama(nn.Module):
    def __init__(self, spec):
        super().__init__()
        width, dim = spec["width"], spec["width"] // spec["heads"]
        self.tokens, self.head = nn.Embedding(spec["vocab"], width), nn.Linear(width, spec["vocab"], bias=False)
        self.blocks = nn.ModuleList(LlamaBlock(spec) for _ in range(spec["layers"]))
        self.norm = nn.RMSNorm(width)
        angles = torch.outer(torch.arange(spec["block"]), 10000.0 ** (-torch.arange(0, dim, 2) / dim)).repeat(1, 2)
        self.register_buffer("cos", angles.cos())
        self.register_buffer("sin", angles.sin())
        for parameter in self.parameters():
            if parameter.dim() >= 2:
                nn.init.normal_(parameter, std=0.02)

    def forward(self, ids, targets):
        x = self.tokens(ids)
        for block in self.blocks:
            x = block(x, self.cos, self.sin)
        logits = self.head(self.norm(x))
        return functional.cross_entropy(logits.view(-1, logits.shape[-1]), targets.reshape(-1))


class Trainer:
    def __init__(self, spec):
        torch.manual_seed(1)
        torch.set_num_threads(spec["threads"])
        if spec["format"] == "fp32":
            torch.set_float32_matmul_precision("medium")
        self.bf16 = spec["format"].startswith("bf16")
        self.device = spec.get("device", "cpu")
        self.model = (Llama if "kv_heads" in spec else Gpt)(spec).to(self.device)
        self.run = torch.compile(self.model) if spec["format"].endswith("compile") else self.model
        matrices = [p for p in self.model.parameters() if p.dim() >= 2]
        vectors = [p for p in self.model.parameters() if p.dim() < 2]
        self.optimiser = torch.optim.AdamW(
            [{"params": matrices, "weight_decay": 0.1}, {"params": vectors, "weight_decay": 0.0}],
            lr=1e-4, betas=(0.9, 0.95), fused=True)
        shape = (spec["batch"], spec["block"] + 1)
        self.data = [torch.randint(0, spec["vocab"], shape, device=self.device) for _ in range(16)]
        self.tokens_per_step = spec["batch"] * spec["block"]
        self.steps = 0

    def step(self):
        ids = self.data[self.steps % len(self.data)]
        self.steps += 1
        with torch.autocast(self.device, torch.bfloat16, enabled=self.bf16):
            loss = self.run(ids[:, :-1].contiguous(), ids[:, 1:].contiguous())
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimiser.step()
        self.optimiser.zero_grad(set_to_none=True)
        return loss.item()

    def measure(self, seconds):
        rates, end = [], time.perf_counter() + seconds
        self.step()  # caches are cold after the other side's turn
        while len(rates) < 3 or time.perf_counter() < end:
            start = time.perf_counter()
            self.step()
            rates.append(self.tokens_per_step / (time.perf_counter() - start))
        rates.sort()
        return {"median": statistics.median(rates), "low": rates[len(rates) // 10],
                "high": rates[len(rates) * 9 // 10], "steps": len(rates)}


def main():
    trainer = Trainer(json.loads(sys.argv[1]))
    for _ in range(4):
        trainer.step()
    parameters = sum(p.numel() for p in trainer.model.parameters())
    print(json.dumps({"program": f"PyTorch {torch.__version__}", "parameters": parameters}), flush=True)
    for line in sys.stdin:
        print(json.dumps(trainer.measure(float(line))), flush=True)


if __name__ == "__main__":
    main()
