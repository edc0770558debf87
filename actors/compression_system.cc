#include "actors/compression_system.h"

#include <future>
#include <memory>
#include <utility>

#include "actors/compressor.h"

namespace fastserve {

Result<CompressedModel> run_compression(ModelBundle source, CompressorHooks hooks,
                                        const CompressSpec& spec) {
  auto work = std::make_shared<Compressor>(std::move(source), std::move(hooks));
  auto outcome = std::make_shared<std::promise<Result<CompressedModel>>>();
  std::future<Result<CompressedModel>> done = outcome->get_future();
  try {
    caf::actor_system_config config;
    // The one worker is the compressor's own thread: unlike a detached actor's, it is joined.
    config.set("scheduler.max-threads", size_t{1});
    config.set("scheduler.policy", caf::atom("sharing"));
    caf::actor_system actors(config);
    const CompressorActor actor = actors.spawn(
        compressor, std::move(work),
        [outcome](Result<CompressedModel> result) { outcome->set_value(std::move(result)); });
    caf::anon_send(actor, messages::Compress{std::make_shared<const CompressSpec>(spec)});
    return done.get();
  } catch (const std::exception& error) {
    return Error{ErrorCode::kResourceExhausted,
                 std::string("the compressor cannot be started: ") + error.what(), "",
                 "free some memory or threads"};
  }
}

}  // namespace fastserve
