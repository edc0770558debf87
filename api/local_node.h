// The Node that runs everything in this process.
#pragma once

#include "actors/training_system.h"
#include "api/device_choice.h"
#include "api/job_folder.h"
#include "api/node.h"
#include "api/shared_store.h"
#include "api/train_material.h"
#include "train/progress.h"

namespace fastserve {

/// Runs a prepared job to its end; `id` is its folder's.
using TrainingEngine =
    std::function<Result<TrainOutcome>(TrainingSystem::Config config, const std::string& id)>;

class LocalNode final : public Node {
 public:
  /// `engine`: in place of this process's own actors; may be empty. `store`: shared with others in
  /// this process; null: this node's own, ROOT/models.
  LocalNode(NodeOptions options, Isa isa, TrainingEngine engine = {},
            std::shared_ptr<SharedStore> store = nullptr)
      : options_(std::move(options)),
        isa_(isa),
        engine_(std::move(engine)),
        store_(store != nullptr ? std::move(store)
                                : std::make_shared<SharedStore>(options_.root / "models", clock_)) {
  }

  const NodeOptions& options() const override { return options_; }
  Result<std::unique_ptr<Store>> open_store() const override;
  Result<std::unique_ptr<Store>> glance_at_store() const override;

  // node_train.cc
  Result<TrainResult> train(const TrainRequest& request,
                            const std::function<void(const TrainUpdate&)>& progress,
                            const CancelFlag& cancel) override;
  // node_compress.cc
  Result<CompressResult> compress(
      const CompressRequest& request,
      const std::function<void(std::string_view stage, double)>& progress,
      const CancelFlag& cancel) override;
  // node_deploy.cc
  Result<std::unique_ptr<Deployment>> deploy(const DeployRequest& request, bool listen) override;

  Result<ModelRef> import_directory(const Path& directory, const std::string& name,
                                    const std::function<void(double)>& progress,
                                    const CancelFlag& cancel) override;
  Status export_directory(const ModelRef& ref, const Path& directory, bool keep_quantised,
                          const std::function<void(double)>& progress,
                          const CancelFlag& cancel) override;

  Result<std::vector<JobInfo>> jobs() const override;
  Result<JobInfo> job(const std::string& id) const override;
  Status remove_job(const std::string& id) override;

 private:
  /// As options().device says, or `before` where that leaves it open; said in the log.
  Result<ChosenDevice> device(const std::string& before = {}) const;
  /// A stored model by "name", "name@3" or "name@tag", and the store it is read from.
  struct Opened {
    std::unique_ptr<Store> store;  ///< first: it outlives the model
    StoredModel model;
  };
  Result<Opened> open_model(const std::string& text) const;

  // node_train.cc
  Status check_store() const;
  Result<TrainMaterial> new_material(const TrainRequest& request, bool device_memory);
  Result<TrainMaterial> resumed_material(JobFolder& job, const TrainRequest& request) const;
  Status load_parent_weights(const JobFolder& job, TrainMaterial& material) const;
  Status check_space(const JobFolder& job, const TrainSpec& spec) const;
  /// Empty where a cluster's nodes train: they choose theirs themselves.
  Result<ChosenDevice> training_device(const std::string& before) const;
  Status save_documents(const JobFolder& job, const TrainMaterial& material) const;
  Result<TrainResult> run_job(JobFolder& job, TrainMaterial material,
                              const TrainPlacement& placement, const ChosenDevice& device,
                              const std::function<void(const TrainUpdate&)>& progress,
                              const CancelFlag& cancel);
  Result<TrainOutcome> run_engine(TrainingSystem::Config config, const std::string& id) const;
  void discard_job(const JobFolder& job) const;
  Result<TrainResult> finish_job(JobFolder& job, const TrainMaterial& material,
                                 const TrainOutcome& outcome);
  Result<ModelRef> publish_trained(const JobFolder& job, const TrainMaterial& material,
                                   const std::vector<float>& weights, const Json& details);

  NodeOptions options_;
  Isa isa_;
  TrainingEngine engine_;
  SystemClock clock_;
  std::shared_ptr<SharedStore> store_;
};

}  // namespace fastserve
