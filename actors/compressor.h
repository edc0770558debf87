// The compressor actor: one compression on a thread of its own. For actors/*.cc only: CAF shows
// here.
#pragma once

#include <caf/all.hpp>
#include <functional>
#include <memory>

#include "compress/compressor.h"

namespace fastserve::messages {

struct Compress {
  std::shared_ptr<const CompressSpec> spec;
};

}  // namespace fastserve::messages

CAF_ALLOW_UNSAFE_MESSAGE_TYPE(fastserve::messages::Compress)

namespace fastserve {

using CompressorActor = caf::typed_actor<caf::reacts_to<messages::Compress>>;

/// Needs a thread of its own, since a compression takes seconds to hours. Does one, hands its
/// outcome to `done` and ends; when it ends for another reason, `done` gets an error.
CompressorActor::behavior_type compressor(CompressorActor::pointer self,
                                          std::shared_ptr<Compressor> work,
                                          std::function<void(Result<CompressedModel>)> done);

}  // namespace fastserve
