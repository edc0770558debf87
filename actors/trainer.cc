#include "actors/trainer.h"

namespace fastserve {

using namespace messages;

TrainerActor::behavior_type trainer(TrainerActor::pointer self, TrainerId id,
                                    std::shared_ptr<GradientWorker> worker,
                                    CoordinatorActor coordinator,
                                    std::vector<ParameterServerActor> shards,
                                    std::vector<size_t> begins) {
  return {
      [=](const Work& work) {
        size_t left = shards.size();  // those before have not got it
        const auto push = [&](const GradientHandle& sum, size_t from) {
          for (; left > 0 && begins[left - 1] >= from; left--)
            self->send(
                shards[left - 1],
                PushGradient{
                    work.item.step, work.item.subtree, work.item.whole, sum, {}, work.item.scale});
        };
        auto done = worker->compute(work.item, push);
        if (!done.ok()) {
          self->send(coordinator, TrainerFailed{id, std::move(done).error()});
          self->quit(caf::exit_reason::user_shutdown);
          return;
        }
        if (done->passed_by) return;
        if (done->dropped) {
          self->send(coordinator, WorkDropped{});
          return;
        }
        self->send(coordinator,
                   WorkDone{id, work.item.round, work.item.unit, std::move(done->losses)});
      },
  };
}

}  // namespace fastserve
