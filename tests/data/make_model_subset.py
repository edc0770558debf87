#!/usr/bin/env python3
"""Copies the models that the tests carry out of a full reference set, leaving out large tensors.

Usage: make_model_subset.py REFERENCE_DIRECTORY tests/data/reference

What is left out is checked on another model or by another quantity: the trained parameters on
gpt2-tiny, the logits of every position by losses and greedy logits.
"""
import json
import pathlib
import shutil
import struct
import sys

DOCUMENTS = ["config.json", "config.v5.json", "generation_config.json", "model.safetensors",
             "reference.json", "tokenizer.json", "tokenizer_config.json", "chat_template.jinja"]
LEFT_OUT = {
    "gpt2-tiny": (),
    "qwen3-tiny": ("param_final.",),
    "qwen2-tiny": ("param_final.", "adam_", "logits", "hidden."),
    "llama3-tiny": ("param_final.", "adam_", "grad.", "logits", "hidden."),
    "mistral-tiny": ("param_final.", "adam_", "grad.", "logits", "hidden."),
}


def copy_tensors(source: pathlib.Path, target: pathlib.Path, left_out: tuple) -> None:
    data = source.read_bytes()
    (length,) = struct.unpack_from("<Q", data)
    header = json.loads(data[8:8 + length])
    kept, body = {}, bytearray()
    for name, entry in header.items():
        if name == "__metadata__":
            kept[name] = entry
            continue
        if name.startswith(left_out):
            continue
        begin, end = (8 + length + offset for offset in entry["data_offsets"])
        kept[name] = {**entry, "data_offsets": [len(body), len(body) + end - begin]}
        body += data[begin:end]
    text = json.dumps(kept).encode()
    text += b" " * (-len(text) % 8)
    target.write_bytes(struct.pack("<Q", len(text)) + text + body)


def main() -> None:
    source, target = (pathlib.Path(argument) for argument in sys.argv[1:3])
    for model, left_out in LEFT_OUT.items():
        folder = target / "models" / model
        folder.mkdir(parents=True, exist_ok=True)
        for name in DOCUMENTS:
            if (source / "models" / model / name).exists():
                shutil.copyfile(source / "models" / model / name, folder / name)
        copy_tensors(source / "models" / model / "reference.safetensors",
                     folder / "reference.safetensors", left_out)


if __name__ == "__main__":
    main()
