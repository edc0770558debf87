#include "actors/trainer.h"

namespace fastserve {

using namespace messages;

TrainerActor::behavior_type trainer(TrainerActor::pointer self, TrainerId id,
                                    std::shared_ptr<GradientWorker> worker,
                                    CoordinatorActor coordinator,
                                    std::vector<ParameterServerActor> shards) {
  return {
      [=](const Work& work) {
        auto done = worker->compute(work.item);
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
        if (done->gradient != nullptr)
          for (const ParameterServerActor& shard : shards)
            self->send(shard, PushGradient{work.item.step,
                                           work.item.subtree,
                                           work.item.whole,
                                           done->gradient,
                                           {},
                                           work.item.scale});
        self->send(coordinator,
                   WorkDone{id, work.item.round, work.item.unit, std::move(done->losses)});
      },
  };
}

}  // namespace fastserve
