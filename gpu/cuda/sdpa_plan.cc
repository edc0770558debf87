#include "gpu/cuda/sdpa_plan.h"

#include <algorithm>
#include <array>

#include "gpu/cuda/sdpa_graph.h"

namespace fastserve::gpu {
namespace {

/// The card's description as a descriptor; none when there is a handle.
Result<std::shared_ptr<Descriptor>> describe(const Cudnn& library, const SdpaTarget& target) {
  if (target.handle != nullptr) return std::shared_ptr<Descriptor>();
  auto made = std::make_shared<Descriptor>(library, CUDNN_BACKEND_DEVICEPROP_DESCRIPTOR);
  const std::vector<char> json(target.device_properties.begin(), target.device_properties.end());
  made->set(CUDNN_ATTR_DEVICEPROP_JSON_REPRESENTATION, CUDNN_TYPE_CHAR, json).finalize();
  FS_TRY(made->status());
  return made;
}

/// What the heuristic proposes for the graph, best first.
Result<std::vector<Descriptor>> propose(const Cudnn& library, const Descriptor& graph,
                                        const Descriptor* card) {
  Descriptor heuristic(library, CUDNN_BACKEND_ENGINEHEUR_DESCRIPTOR);
  heuristic.set(CUDNN_ATTR_ENGINEHEUR_OPERATION_GRAPH, graph)
      .set(CUDNN_ATTR_ENGINEHEUR_MODE, CUDNN_TYPE_HEUR_MODE, CUDNN_HEUR_MODE_A);
  if (card != nullptr) heuristic.set(CUDNN_ATTR_ENGINEHEUR_DEVICEPROP, *card);
  heuristic.finalize();
  FS_TRY(heuristic.status());
  int64_t count = 0;
  const auto results = [&](int64_t room, void* into) {
    return library.cudnnBackendGetAttribute(heuristic.raw(), CUDNN_ATTR_ENGINEHEUR_RESULTS,
                                            CUDNN_TYPE_BACKEND_DESCRIPTOR, room, &count, into);
  };
  results(0, nullptr);
  std::vector<Descriptor> proposed;
  std::vector<cudnnBackendDescriptor_t> raw;
  for (int64_t i = 0; i < count; i++) {
    proposed.emplace_back(library, CUDNN_BACKEND_ENGINECFG_DESCRIPTOR);
    FS_TRY(proposed.back().status());
    raw.push_back(proposed.back().raw());
  }
  if (count == 0 || results(count, raw.data()) != CUDNN_STATUS_SUCCESS)
    return Error{ErrorCode::kUnsupported, "has no engine for this attention", "cuDNN", ""};
  while (static_cast<int64_t>(proposed.size()) > count) proposed.pop_back();
  return proposed;
}

Result<Descriptor> graph_of(const Cudnn& library, const SdpaShape& shape, SdpaPass pass,
                            cudnnHandle_t handle) {
  if (pass == SdpaPass::kForward) return sdpa_forward_graph(library, shape, handle);
  const bool whole = pass == SdpaPass::kBackward;
  return sdpa_backward_graph(library, shape, whole ? QueryGradient::kWhole : QueryGradient::kSums,
                             handle);
}

struct Engine {
  int64_t number = -1;
  bool keeps_bits = true;  ///< false where the library itself says otherwise
};

Engine engine_of(const Cudnn& library, const Descriptor& config) {
  Engine found;
  Descriptor engine(library, CUDNN_BACKEND_ENGINE_DESCRIPTOR);
  cudnnBackendDescriptor_t raw = engine.raw();
  int64_t count = 0;
  if (!engine.status().ok() ||
      library.cudnnBackendGetAttribute(config.raw(), CUDNN_ATTR_ENGINECFG_ENGINE,
                                       CUDNN_TYPE_BACKEND_DESCRIPTOR, 1, &count,
                                       &raw) != CUDNN_STATUS_SUCCESS)
    return found;
  library.cudnnBackendGetAttribute(raw, CUDNN_ATTR_ENGINE_GLOBAL_INDEX, CUDNN_TYPE_INT64, 1, &count,
                                   &found.number);
  std::array<cudnnBackendNumericalNote_t, CUDNN_NUMERICAL_NOTE_TYPE_COUNT> notes{};
  library.cudnnBackendGetAttribute(raw, CUDNN_ATTR_ENGINE_NUMERICAL_NOTE, CUDNN_TYPE_NUMERICAL_NOTE,
                                   notes.size(), &count, notes.data());
  const auto end = notes.begin() + std::min<int64_t>(count, notes.size());
  found.keeps_bits = std::find(notes.begin(), end, CUDNN_NUMERICAL_NOTE_NONDETERMINISTIC) == end;
  return found;
}

}  // namespace

Result<SdpaPlan> SdpaPlan::make(const Cudnn& library, const SdpaShape& shape, SdpaPass pass,
                                const SdpaTarget& target) {
  FS_ASSIGN(const auto card, describe(library, target));
  FS_ASSIGN(const Descriptor graph, graph_of(library, shape, pass, target.handle));
  FS_ASSIGN(const std::vector<Descriptor> proposed, propose(library, graph, card.get()));
  Status last;
  for (const Descriptor& config : proposed) {
    const Engine engine = engine_of(library, config);
    if (!engine.keeps_bits && pass != SdpaPass::kBackwardAtomic) {
      last = Error{ErrorCode::kUnsupported, "has no engine that keeps its bits", "cuDNN", ""};
      continue;
    }
    Descriptor plan(library, CUDNN_BACKEND_EXECUTION_PLAN_DESCRIPTOR);
    if (target.handle != nullptr)
      plan.set(CUDNN_ATTR_EXECUTION_PLAN_HANDLE, CUDNN_TYPE_HANDLE, target.handle);
    plan.set(CUDNN_ATTR_EXECUTION_PLAN_ENGINE_CONFIG, config);
    if (card != nullptr) plan.set(CUDNN_ATTR_EXECUTION_PLAN_DEVICEPROP, *card);
    plan.finalize();
    last = plan.status();
    if (!last.ok()) continue;
    SdpaPlan made(std::move(plan), engine.number);
    int64_t count = 0;
    library.cudnnBackendGetAttribute(made.plan_.raw(), CUDNN_ATTR_EXECUTION_PLAN_WORKSPACE_SIZE,
                                     CUDNN_TYPE_INT64, 1, &count, &made.workspace_bytes_);
    return made;
  }
  return last.error();
}

Status SdpaPlan::run(cudnnHandle_t handle, const std::map<SdpaOperand, void*>& operands,
                     void* workspace) const {
  std::vector<int64_t> names;
  std::vector<void*> pointers;
  for (const auto& [name, pointer] : operands) {
    names.push_back(name);
    pointers.push_back(pointer);
  }
  const Cudnn& library = plan_.library();
  Descriptor pack(library, CUDNN_BACKEND_VARIANT_PACK_DESCRIPTOR);
  pack.set(CUDNN_ATTR_VARIANT_PACK_DATA_POINTERS, CUDNN_TYPE_VOID_PTR, pointers)
      .set(CUDNN_ATTR_VARIANT_PACK_UNIQUE_IDS, CUDNN_TYPE_INT64, names)
      .set(CUDNN_ATTR_VARIANT_PACK_WORKSPACE, CUDNN_TYPE_VOID_PTR, workspace)
      .finalize();
  FS_TRY(pack.status());
  const cudnnStatus_t status = library.cudnnBackendExecute(handle, plan_.raw(), pack.raw());
  if (status == CUDNN_STATUS_SUCCESS) return {};
  return Error{ErrorCode::kInternal,
               std::string("attention failed: ") + library.cudnnGetErrorString(status), "cuDNN",
               ""};
}

}  // namespace fastserve::gpu
