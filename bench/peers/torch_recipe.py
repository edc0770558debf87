"""The recipe's peer: nanoGPT's shakespeare-char run for a CPU, in plain PyTorch.

argv[1] is a JSON object: data (a text file), seed, threads, steps. Trains as
github.com/karpathy/nanoGPT does with config/train_shakespeare_char.py and the CPU settings of its
README (no biases, scaled initialisation of the residual projections, random windows), then prints
one JSON line: the loss over the WHOLE validation split and the seconds of training.
"""
import json
import math
import pathlib
import sys
import time

import torch
from torch import nn
from torch.nn import functional

LAYERS, HEADS, WIDTH, BLOCK, BATCH = 4, 4, 128, 64, 12
RATE, LOWEST_RATE, WARM_UP, BETAS, DECAY, CLIP = 1e-3, 1e-4, 100, (0.9, 0.99), 0.1, 1.0


class Norm(nn.Module):
    """LayerNorm without a bias, as nanoGPT has it."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(WIDTH))

    def forward(self, x):
        return functional.layer_norm(x, self.weight.shape, self.weight, None, 1e-5)


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm1, self.norm2 = Norm(), Norm()
        self.qkv, self.out = nn.Linear(WIDTH, 3 * WIDTH, bias=False), nn.Linear(WIDTH, WIDTH, bias=False)
        self.up, self.down = nn.Linear(WIDTH, 4 * WIDTH, bias=False), nn.Linear(4 * WIDTH, WIDTH, bias=False)

    def forward(self, x):
        batch, length, _ = x.shape
        split = (batch, length, HEADS, WIDTH // HEADS)
        q, k, v = (part.view(split).transpose(1, 2) for part in self.qkv(self.norm1(x)).split(WIDTH, 2))
        mixed = functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.out(mixed.transpose(1, 2).reshape(batch, length, WIDTH))
        return x + self.down(functional.gelu(self.up(self.norm2(x))))


class Gpt(nn.Module):
    def __init__(self, vocab):
        super().__init__()
        self.tokens, self.positions = nn.Embedding(vocab, WIDTH), nn.Embedding(BLOCK, WIDTH)
        self.blocks = nn.ModuleList(Block() for _ in range(LAYERS))
        self.norm = Norm()
        for name, parameter in self.named_parameters():
            if parameter.dim() >= 2:
                residual = name.endswith(("out.weight", "down.weight"))
                nn.init.normal_(parameter, std=0.02 / math.sqrt(2 * LAYERS) if residual else 0.02)

    def forward(self, ids, targets):
        x = self.tokens(ids) + self.positions(torch.arange(ids.shape[1]))
        for block in self.blocks:
            x = block(x)
        logits = functional.linear(self.norm(x), self.tokens.weight)  # the head is tied
        return functional.cross_entropy(logits.view(-1, logits.shape[-1]), targets.reshape(-1), reduction="sum")


def rate_at(step, steps):
    if step < WARM_UP:
        return RATE * (step + 1) / (WARM_UP + 1)
    done = (step - WARM_UP) / (steps - WARM_UP)
    return LOWEST_RATE + 0.5 * (1 + math.cos(math.pi * done)) * (RATE - LOWEST_RATE)


def read(path):
    """Character ids, the first nine tenths and the rest."""
    text = pathlib.Path(path).read_text()
    characters = {c: i for i, c in enumerate(sorted(set(text)))}
    ids = torch.tensor([characters[c] for c in text])
    cut = int(0.9 * len(ids))
    return ids[:cut], ids[cut:], len(characters)


def validation_loss(model, ids):
    """Every token but the first is a target once: windows side by side, the last one short."""
    whole = (len(ids) - 1) // BLOCK * BLOCK
    inputs, targets = ids[:whole].view(-1, BLOCK), ids[1:whole + 1].view(-1, BLOCK)
    with torch.no_grad():
        total = sum(model(x, y).item() for x, y in zip(inputs.split(256), targets.split(256)))
        if whole < len(ids) - 1:
            total += model(ids[whole:-1][None], ids[whole + 1:][None]).item()
    return total / (len(ids) - 1)


def main():
    options = json.loads(sys.argv[1])
    torch.manual_seed(options["seed"])
    torch.set_num_threads(options["threads"])
    train, validation, vocab = read(options["data"])
    model, steps = Gpt(vocab), options["steps"]
    matrices = [p for p in model.parameters() if p.dim() >= 2]
    vectors = [p for p in model.parameters() if p.dim() < 2]
    optimiser = torch.optim.AdamW(
        [{"params": matrices, "weight_decay": DECAY}, {"params": vectors, "weight_decay": 0.0}],
        lr=RATE, betas=BETAS, fused=True)
    autocast = torch.autocast("cpu", torch.bfloat16)
    start = time.perf_counter()
    for step in range(steps):
        for group in optimiser.param_groups:
            group["lr"] = rate_at(step, steps)
        at = torch.randint(len(train) - BLOCK, (BATCH,))
        window = torch.stack([train[i:i + BLOCK + 1] for i in at])
        with autocast:
            loss = model(window[:, :-1].contiguous(), window[:, 1:].contiguous()) / (BATCH * BLOCK)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), CLIP)
        optimiser.step()
        optimiser.zero_grad(set_to_none=True)
    seconds = time.perf_counter() - start
    with autocast:
        loss = validation_loss(model, validation)
    print(json.dumps({"program": f"PyTorch {torch.__version__}", "validation_loss": loss, "seconds": seconds,
                      "parameters": sum(p.numel() for p in model.parameters())}))


if __name__ == "__main__":
    main()
