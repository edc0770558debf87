"""The inference peer: llama.cpp's own library, through the bindings that llama-cpp-python ships.

argv[1] is a JSON object: model (its shape), models (folder of weight files), format (bf16, q8_0,
q4_0 or q4_0-pure), threads, task (decode, batch or prefill), tokens, and for batch streams and
prompt. The loops are those of llama-bench and llama-batched-bench; Python costs some 20 us a call.
Prints one line when ready; then for each line with a number of seconds on stdin it measures that
long and prints the median, lowest and highest tokens/s. Attention is llama.cpp's flash kernel or its
plain one, whichever was faster at the start.
"""
import ctypes
import json
import os
import pathlib
import random
import statistics
import sys
import time

import gguf
import llama_cpp
import numpy

# llama.h, enum llama_ftype
FILE_TYPES = {"bf16": 32, "q8_0": 7, "q4_0": 2, "q4_0-pure": 2}
# llama.h, enum llama_flash_attn_type
ATTENTION = {"flash": 1, "plain": 0}


def write_random_model(path, shape):
    """Random f16 weights in llama.cpp's layout, without a tokenizer."""
    width, ffn, head = shape["width"], shape["ffn"], shape["width"] // shape["heads"]
    writer = gguf.GGUFWriter(str(path), "llama")
    writer.add_context_length(8192)
    writer.add_embedding_length(width)
    writer.add_block_count(shape["layers"])
    writer.add_feed_forward_length(ffn)
    writer.add_head_count(shape["heads"])
    writer.add_head_count_kv(shape["kv_heads"])
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_dimension_count(head)
    writer.add_rope_freq_base(10000.0)
    writer.add_vocab_size(shape["vocab"])
    writer.add_tokenizer_model("no_vocab")
    writer.add_file_type(1)  # mostly f16
    rng = numpy.random.default_rng(0)

    def matrix(name, rows, columns):
        values = rng.standard_normal((rows, columns), dtype=numpy.float32) * numpy.float32(0.02)
        writer.add_tensor(name + ".weight", values.astype(numpy.float16))

    def ones(name):
        writer.add_tensor(name + ".weight", numpy.ones(width, numpy.float32))

    matrix("token_embd", shape["vocab"], width)
    matrix("output", shape["vocab"], width)
    ones("output_norm")
    for i in range(shape["layers"]):
        block = f"blk.{i}."
        ones(block + "attn_norm")
        ones(block + "ffn_norm")
        matrix(block + "attn_q", width, width)
        matrix(block + "attn_k", shape["kv_heads"] * head, width)
        matrix(block + "attn_v", shape["kv_heads"] * head, width)
        matrix(block + "attn_output", width, width)
        matrix(block + "ffn_gate", ffn, width)
        matrix(block + "ffn_up", ffn, width)
        matrix(block + "ffn_down", width, ffn)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def into_place(path, make):
    """Makes a file under another name first, so that a half-written one is never used."""
    if path.exists():
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial")
    print(f"making {path}", file=sys.stderr, flush=True)
    make(partial)
    os.replace(partial, path)


def quantise(source, target, fmt, threads):
    params = llama_cpp.llama_model_quantize_default_params()
    params.ftype = FILE_TYPES[fmt]
    params.nthread = threads
    params.pure = fmt.endswith("-pure")
    code = llama_cpp.llama_model_quantize(str(source).encode(), str(target).encode(), ctypes.byref(params))
    if code != 0:
        raise RuntimeError(f"llama.cpp could not write {target} (code {code})")


def model_file(spec):
    folder = pathlib.Path(spec["models"])
    base = folder / f"{spec['model']['name']}-f16.gguf"
    wanted = folder / f"{spec['model']['name']}-{spec['format']}.gguf"
    if not wanted.exists():
        into_place(base, lambda path: write_random_model(path, spec["model"]))
    into_place(wanted, lambda path: quantise(base, path, spec["format"], spec["threads"]))
    return wanted


class Runner:
    def __init__(self, spec):
        self.task, self.tokens, self.vocab = spec["task"], spec["tokens"], spec["model"]["vocab"]
        self.streams, self.prompt = spec.get("streams", 1), spec.get("prompt", 0)
        self.random = random.Random(1)
        path = model_file(spec)
        self.model = llama_cpp.llama_model_load_from_file(
            str(path).encode(), llama_cpp.llama_model_default_params())
        if not self.model:
            raise RuntimeError(f"llama.cpp could not load {path}")
        self.batch = llama_cpp.llama_batch_init(max(512, self.streams), 0, 1)
        contexts = {name: self.make_context(spec, flash) for name, flash in ATTENTION.items()}
        rates = dict.fromkeys(contexts, 0.0)
        for _ in range(2):
            for name, context in contexts.items():
                self.use(context)
                rates[name] = max(rates[name], self.measure(0.5, least=1)["median"])
        self.attention = max(rates, key=rates.get)
        self.use(contexts.pop(self.attention))
        for context in contexts.values():
            llama_cpp.llama_free(context)

    def make_context(self, spec, flash):
        """A context with the prompts of all streams in its cache."""
        params = llama_cpp.llama_context_default_params()
        params.n_ctx = self.streams * (self.prompt + self.tokens)
        params.n_batch = max(2048, self.streams)
        params.n_ubatch = 512
        params.n_seq_max = self.streams
        params.n_threads = params.n_threads_batch = spec["threads"]
        params.flash_attn_type = flash
        params.no_perf = True
        context = llama_cpp.llama_init_from_model(self.model, params)
        if not context:
            raise RuntimeError("llama.cpp could not make a context")
        self.use(context)
        if self.prompt:
            self.decode([(0, i) for i in range(self.prompt)], last_only=True)
            for stream in range(1, self.streams):
                llama_cpp.llama_memory_seq_cp(self.memory, 0, stream, -1, -1)
        return context

    def use(self, context):
        self.context, self.memory = context, llama_cpp.llama_get_memory(context)

    def decode(self, places, last_only=False):
        """One call with a random token at each (stream, position)."""
        batch = self.batch
        batch.n_tokens = len(places)
        for i, (stream, position) in enumerate(places):
            batch.token[i] = self.random.randrange(self.vocab)
            batch.pos[i] = position
            batch.n_seq_id[i] = 1
            batch.seq_id[i][0] = stream
            batch.logits[i] = not last_only or i + 1 == len(places)
        if llama_cpp.llama_decode(self.context, batch) != 0:
            raise RuntimeError("llama.cpp could not decode a batch")

    def repetition(self):
        """Tokens of one repetition; the context is as before afterwards."""
        if self.task == "prefill":
            llama_cpp.llama_memory_clear(self.memory, False)
            self.decode([(0, i) for i in range(self.tokens)], last_only=True)
        else:
            for stream in range(self.streams):
                llama_cpp.llama_memory_seq_rm(self.memory, stream, self.prompt, -1)
            for i in range(self.tokens):
                self.decode([(stream, self.prompt + i) for stream in range(self.streams)])
        llama_cpp.llama_synchronize(self.context)
        return self.tokens * self.streams

    def measure(self, seconds, least=3):
        self.repetition()  # caches are cold after the other side's turn
        rates, end = [], time.perf_counter() + seconds
        while len(rates) < least or time.perf_counter() < end:
            start = time.perf_counter()
            tokens = self.repetition()
            rates.append(tokens / (time.perf_counter() - start))
        return {"median": statistics.median(rates), "low": min(rates), "high": max(rates),
                "repetitions": len(rates)}


@llama_cpp.llama_log_callback
def only_errors(level, text, _):
    if level == 4:  # GGML_LOG_LEVEL_ERROR
        sys.stderr.write(text.decode(errors="replace"))


def main():
    llama_cpp.llama_log_set(only_errors, ctypes.c_void_p(0))
    llama_cpp.llama_backend_init()
    runner = Runner(json.loads(sys.argv[1]))
    system = llama_cpp.llama_print_system_info().decode().strip()
    print(json.dumps({"program": f"llama.cpp of llama-cpp-python {llama_cpp.__version__}", "system": system,
                      "settings": [f"{runner.attention} attention"]}),
          flush=True)
    for line in sys.stdin:
        print(json.dumps(runner.measure(float(line))), flush=True)


if __name__ == "__main__":
    main()
