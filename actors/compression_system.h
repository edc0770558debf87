// One compression, run by a compressor actor.
#pragma once

#include "compress/compressor.h"

namespace fastserve {

/// Compresses `source` on the thread of an actor, and blocks until it is done. The hooks are called
/// on that thread, one at a time; raising hooks.cancel from any thread ends it with kCancelled at
/// the next safe point. Errors are those of Compressor::run; kUnavailable when the actor dies, of
/// std::bad_alloc for one. No thread is left when it returns.
Result<CompressedModel> run_compression(ModelBundle source, CompressorHooks hooks,
                                        const CompressSpec& spec);

}  // namespace fastserve
