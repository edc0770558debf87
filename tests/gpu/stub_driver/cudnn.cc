#include "tests/gpu/stub_driver/cudnn.h"

#include <array>
#include <cstring>
#include <map>

#include "gpu/cuda/cudnn_attention.h"
#include "tests/gpu/stub_driver/cudnn_graph.h"

namespace stub_cudnn {

using fastserve::gpu::Runtime;

State& state() {
  static State only;
  return only;
}

namespace {

constexpr int64_t kScratch = 640;  // bytes that each plan asks for, and fills

Runtime*& memory() {
  static Runtime* only = nullptr;
  return only;
}

Object& object_of(cudnnBackendDescriptor_t raw) { return **static_cast<Handle*>(raw); }

size_t bytes_of(cudnnBackendAttributeType_t type) {
  switch (type) {
    case CUDNN_TYPE_BOOLEAN:
      return sizeof(bool);
    case CUDNN_TYPE_INT64:
    case CUDNN_TYPE_VOID_PTR:
    case CUDNN_TYPE_HANDLE:
      return 8;
    default:
      return 4;  // enumerations
  }
}

cudnnStatus_t create(cudnnBackendDescriptorType_t type, cudnnBackendDescriptor_t* out) {
  *out = new Handle(std::make_shared<Object>(Object{type, {}, {}}));
  state().live++;
  return CUDNN_STATUS_SUCCESS;
}

cudnnStatus_t destroy(cudnnBackendDescriptor_t raw) {
  delete static_cast<Handle*>(raw);
  state().live--;
  return CUDNN_STATUS_SUCCESS;
}

cudnnStatus_t set(cudnnBackendDescriptor_t raw, cudnnBackendAttributeName_t name,
                  cudnnBackendAttributeType_t type, int64_t count, const void* values) {
  Object& object = object_of(raw);
  if (type == CUDNN_TYPE_BACKEND_DESCRIPTOR) {
    const auto* const others = static_cast<const cudnnBackendDescriptor_t*>(values);
    for (int64_t i = 0; i < count; i++)
      object.parts[name].push_back(*static_cast<Handle*>(others[i]));
    return CUDNN_STATUS_SUCCESS;
  }
  const auto* const bytes = static_cast<const char*>(values);
  object.values[name].assign(bytes, bytes + static_cast<size_t>(count) * bytes_of(type));
  return CUDNN_STATUS_SUCCESS;
}

/// Two engines for anything, the first of which is noted to change its bits.
cudnnStatus_t get(cudnnBackendDescriptor_t raw, cudnnBackendAttributeName_t name,
                  cudnnBackendAttributeType_t, int64_t room, int64_t* count, void* into) {
  Object& object = object_of(raw);
  const auto one = [&](const auto& value) {
    *count = 1;
    if (room > 0) std::memcpy(into, &value, sizeof value);
    return CUDNN_STATUS_SUCCESS;
  };
  switch (name) {
    case CUDNN_ATTR_ENGINEHEUR_RESULTS:
      *count = 2;
      for (int64_t i = 0; i < std::min<int64_t>(room, 2); i++) {
        Object& config = object_of(static_cast<cudnnBackendDescriptor_t*>(into)[i]);
        config.parts[CUDNN_ATTR_ENGINE_OPERATION_GRAPH] =
            object.parts.at(CUDNN_ATTR_ENGINEHEUR_OPERATION_GRAPH);
        config.put(CUDNN_ATTR_ENGINE_GLOBAL_INDEX, i);
      }
      return CUDNN_STATUS_SUCCESS;
    case CUDNN_ATTR_ENGINECFG_ENGINE:
      object_of(*static_cast<cudnnBackendDescriptor_t*>(into)) = object;
      *count = 1;
      return CUDNN_STATUS_SUCCESS;
    case CUDNN_ATTR_ENGINE_GLOBAL_INDEX:
      return one(object.number(name));
    case CUDNN_ATTR_ENGINE_NUMERICAL_NOTE:
      return one(object.number(CUDNN_ATTR_ENGINE_GLOBAL_INDEX) == 0
                     ? CUDNN_NUMERICAL_NOTE_NONDETERMINISTIC
                     : CUDNN_NUMERICAL_NOTE_TENSOR_CORE);
    case CUDNN_ATTR_EXECUTION_PLAN_WORKSPACE_SIZE:
      return one(kScratch);
    default:
      return CUDNN_STATUS_NOT_SUPPORTED;
  }
}

cudnnStatus_t finalize(cudnnBackendDescriptor_t raw) {
  if (object_of(raw).type == CUDNN_BACKEND_EXECUTION_PLAN_DESCRIPTOR) state().plans++;
  return CUDNN_STATUS_SUCCESS;
}

cudnnStatus_t execute(cudnnHandle_t, cudnnBackendDescriptor_t raw, cudnnBackendDescriptor_t pack) {
  const Object& config = *object_of(raw).parts.at(CUDNN_ATTR_EXECUTION_PLAN_ENGINE_CONFIG).front();
  const Object& graph = *config.parts.at(CUDNN_ATTR_ENGINE_OPERATION_GRAPH).front();
  const Object& given = object_of(pack);
  const auto names = given.all<int64_t>(CUDNN_ATTR_VARIANT_PACK_UNIQUE_IDS);
  const auto pointers = given.all<void*>(CUDNN_ATTR_VARIANT_PACK_DATA_POINTERS);
  state().executions++;
  state().by_atomics |= config.number(CUDNN_ATTR_ENGINE_GLOBAL_INDEX) == 0;
  const std::vector<char> noise(kScratch, '\x7f');
  memory()->copy_in(given.all<void*>(CUDNN_ATTR_VARIANT_PACK_WORKSPACE).front(), noise.data(),
                    noise.size());
  Evaluation run(*memory());
  for (size_t i = 0; i < names.size(); i++) run.give(names[i], pointers[i]);
  return run.all(graph.parts.at(CUDNN_ATTR_OPERATIONGRAPH_OPS)) ? CUDNN_STATUS_SUCCESS
                                                                : CUDNN_STATUS_BAD_PARAM;
}

const fastserve::gpu::Cudnn& table() {
  static const fastserve::gpu::Cudnn only = [] {
    fastserve::gpu::Cudnn t;
    t.cudnnGetErrorString = [](cudnnStatus_t) { return "the stand-in said no"; };
    t.cudnnGetLastErrorString = [](char* text, size_t) { *text = '\0'; };
    t.cudnnCreate = [](cudnnHandle_t* out) {
      *out = reinterpret_cast<cudnnHandle_t>(&state());
      state().live++;
      return CUDNN_STATUS_SUCCESS;
    };
    t.cudnnDestroy = [](cudnnHandle_t) {
      state().live--;
      return CUDNN_STATUS_SUCCESS;
    };
    t.cudnnSetStream = [](cudnnHandle_t, cudaStream_t) { return CUDNN_STATUS_SUCCESS; };
    t.cudnnBackendCreateDescriptor = create;
    t.cudnnBackendDestroyDescriptor = destroy;
    t.cudnnBackendSetAttribute = set;
    t.cudnnBackendGetAttribute = get;
    t.cudnnBackendFinalize = finalize;
    t.cudnnBackendExecute = execute;
    return t;
  }();
  return only;
}

}  // namespace

std::unique_ptr<fastserve::gpu::AttentionEngine> make_attention(Runtime& runtime) {
  memory() = &runtime;
  return fastserve::gpu::make_cudnn_attention(table(), "0", runtime);
}

}  // namespace stub_cudnn
