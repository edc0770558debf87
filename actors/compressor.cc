#include "actors/compressor.h"

#include <exception>
#include <string>

namespace fastserve {

CompressorActor::behavior_type compressor(CompressorActor::pointer self,
                                          std::shared_ptr<Compressor> work,
                                          std::function<void(Result<CompressedModel>)> done) {
  auto failure = std::make_shared<std::string>("it was stopped");
  auto reported = std::make_shared<bool>(false);
  self->set_exception_handler([failure](std::exception_ptr& thrown) -> caf::error {
    try {
      std::rethrow_exception(thrown);
    } catch (const std::exception& e) {
      *failure = e.what();
    } catch (...) {
      *failure = "unknown exception";
    }
    return caf::sec::runtime_error;
  });
  self->attach_functor([failure, reported, done] {
    if (!*reported)
      done(Error{ErrorCode::kUnavailable, "the compressor failed: " + *failure, "",
                 "try again with more memory free"});
  });
  return {[=](const messages::Compress& m) {
    auto outcome = work->run(*m.spec);
    *reported = true;
    done(std::move(outcome));
    self->quit();
  }};
}

}  // namespace fastserve
