#include "tests/gpu/stub_driver/cudnn_graph.h"

#include <algorithm>
#include <cmath>

#include "base/half.h"

namespace stub_cudnn {
namespace {

using fastserve::BFloat16;
using fastserve::Float16;

template <class T>
T as_type(float x) {
  if constexpr (std::is_same_v<T, BFloat16>) return fastserve::to_bfloat16(x);
  if constexpr (std::is_same_v<T, Float16>) return fastserve::to_float16(x);
  if constexpr (std::is_same_v<T, float>) return x;
}
float number(float x) { return x; }
template <class T>
float number(T x) {
  return fastserve::to_float(x);
}

/// Calls body.operator()<T>() with the type of a tensor's elements.
template <class Body>
void with_type(const Object& tensor, const Body& body) {
  const auto type = tensor.first<cudnnDataType_t>(CUDNN_ATTR_TENSOR_DATA_TYPE);
  if (type == CUDNN_DATA_BFLOAT16) return body.template operator()<BFloat16>();
  if (type == CUDNN_DATA_HALF) return body.template operator()<Float16>();
  return body.template operator()<float>();
}

int64_t name_of(const Object& tensor) { return tensor.number(CUDNN_ATTR_TENSOR_UNIQUE_ID); }

Numbers empty(const Object& tensor) {
  Numbers made{tensor.all<int64_t>(CUDNN_ATTR_TENSOR_DIMENSIONS),
               tensor.all<int64_t>(CUDNN_ATTR_TENSOR_STRIDES),
               {}};
  int64_t elements = 1;
  for (const int64_t d : made.dimensions) elements *= d;
  made.data.resize(static_cast<size_t>(elements));
  return made;
}

/// Steps through `x` that go along with `out`: none along what x has once, and heads that share
/// one of x's (where it is neither all nor one of them) are neighbours.
class Along {
 public:
  Along(const Numbers& x, const std::vector<int64_t>& out) : x_(x), out_(out) {}
  float operator()(size_t i) const {
    size_t offset = 0, step = 1;
    for (size_t d = out_.size(); d-- > 0;) {
      const size_t at = i % size_t(out_[d]);
      i /= size_t(out_[d]);
      offset += at / size_t(out_[d] / x_.dimensions[d]) * step;
      step *= size_t(x_.dimensions[d]);
    }
    return x_.data[offset];
  }

 private:
  const Numbers& x_;
  const std::vector<int64_t>& out_;
};

void multiply(const Numbers& a, const Numbers& b, Numbers& out) {
  const std::vector<int64_t>& size = out.dimensions;
  const auto at = [](const Numbers& of, int64_t batch, int64_t head, int64_t of_heads, int64_t row,
                     int64_t column) {
    const int64_t own = head / (of_heads / of.dimensions[1]);
    return of.data[size_t(
        ((batch * of.dimensions[1] + own) * of.dimensions[2] + row) * of.dimensions[3] + column)];
  };
  size_t i = 0;
  for (int64_t batch = 0; batch < size[0]; batch++)
    for (int64_t head = 0; head < size[1]; head++)
      for (int64_t row = 0; row < size[2]; row++)
        for (int64_t column = 0; column < size[3]; column++) {
          float sum = 0;
          for (int64_t k = 0; k < a.dimensions[3]; k++)
            sum += at(a, batch, head, size[1], row, k) * at(b, batch, head, size[1], k, column);
          out.data[i++] = sum;
        }
}

/// Over what `out` has fewer of.
void reduce(cudnnReduceTensorOp_t how, const Numbers& x, Numbers& out) {
  const bool most = how == CUDNN_REDUCE_TENSOR_MAX;
  std::fill(out.data.begin(), out.data.end(), most ? -INFINITY : 0.0f);
  for (size_t i = 0; i < x.data.size(); i++) {
    size_t rest = i, offset = 0, step = 1;
    for (size_t d = x.dimensions.size(); d-- > 0;) {
      offset += rest % size_t(x.dimensions[d]) / size_t(x.dimensions[d] / out.dimensions[d]) * step;
      rest /= size_t(x.dimensions[d]);
      step *= size_t(out.dimensions[d]);
    }
    out.data[offset] = most ? std::max(out.data[offset], x.data[i]) : out.data[offset] + x.data[i];
  }
}

/// The same memory in other dimensions.
void reshape(const Numbers& x, Numbers& out) {
  std::map<int64_t, float> stored;
  x.each(x.strides, [&](size_t i, int64_t offset) { stored[offset] = x.data[i]; });
  out.each(out.strides, [&](size_t i, int64_t offset) { out.data[i] = stored.at(offset); });
}

}  // namespace

const Numbers& Evaluation::read(const Handle& tensor) {
  const int64_t name = name_of(*tensor);
  if (const auto found = known_.find(name); found != known_.end()) return found->second;
  Numbers made = empty(*tensor);
  void* const pointer = pointers_.at(name);
  used_[name] = true;
  if (tensor->flag(CUDNN_ATTR_TENSOR_IS_BY_VALUE)) {
    made.data = {*static_cast<const float*>(pointer)};
  } else {
    with_type(*tensor, [&]<class T>() {
      int64_t last = 0;
      made.each(made.strides, [&](size_t, int64_t offset) { last = std::max(last, offset); });
      std::vector<T> stored(static_cast<size_t>(last) + 1);
      memory_.copy_out(stored.data(), pointer, stored.size() * sizeof(T));
      made.each(made.strides,
                [&](size_t i, int64_t offset) { made.data[i] = number(stored[size_t(offset)]); });
    });
  }
  return known_[name] = std::move(made);
}

void Evaluation::write(const Handle& tensor, Numbers numbers) {
  const int64_t name = name_of(*tensor);
  with_type(*tensor, [&]<class T>() {
    for (float& x : numbers.data) x = number(as_type<T>(x));
    if (tensor->flag(CUDNN_ATTR_TENSOR_IS_VIRTUAL)) return;
    used_[name] = true;
    auto* const pointer = static_cast<T*>(pointers_.at(name));
    numbers.each(numbers.strides, [&](size_t i, int64_t offset) {
      const T one = as_type<T>(numbers.data[i]);
      memory_.copy_in(pointer + offset, &one, sizeof one);
    });
  });
  known_[name] = std::move(numbers);
}

bool Evaluation::pointwise(const Object& operation) {
  const Object& how = *operation.parts.at(CUDNN_ATTR_OPERATION_POINTWISE_PW_DESCRIPTOR).front();
  const auto mode = how.first<cudnnPointwiseMode_t>(CUDNN_ATTR_POINTWISE_MODE);
  const Handle& into = operation.parts.at(CUDNN_ATTR_OPERATION_POINTWISE_YDESC).front();
  const auto operand = [&](int name) -> const Numbers* {
    const auto found = operation.parts.find(name);
    return found == operation.parts.end() ? nullptr : &read(found->second.front());
  };
  const Numbers& x = *operand(CUDNN_ATTR_OPERATION_POINTWISE_XDESC);
  const Numbers *const b = operand(CUDNN_ATTR_OPERATION_POINTWISE_BDESC),
                       *const t = operand(CUDNN_ATTR_OPERATION_POINTWISE_TDESC);
  Numbers out = empty(*into);
  if (mode == CUDNN_POINTWISE_GEN_INDEX) {
    std::vector<int64_t> along(out.dimensions.size(), 0);
    along[size_t(how.number(CUDNN_ATTR_POINTWISE_AXIS))] = 1;
    out.each(along, [&](size_t i, int64_t index) { out.data[i] = static_cast<float>(index); });
  } else {
    for (size_t i = 0; i < out.data.size(); i++) {
      const float first = Along(x, out.dimensions)(i);
      const float second = b == nullptr ? 0 : Along(*b, out.dimensions)(i);
      float& y = out.data[i];
      switch (mode) {
        case CUDNN_POINTWISE_ADD:
          y = first + second;
          break;
        case CUDNN_POINTWISE_SUB:
          y = first - second;
          break;
        case CUDNN_POINTWISE_MUL:
          y = first * second;
          break;
        case CUDNN_POINTWISE_DIV:
          y = first / second;
          break;
        case CUDNN_POINTWISE_EXP:
          y = std::exp(first);
          break;
        case CUDNN_POINTWISE_LOG:
          y = std::log(first);
          break;
        case CUDNN_POINTWISE_IDENTITY:
          y = first;
          break;
        case CUDNN_POINTWISE_CMP_GE:
          y = first >= second ? 1.0f : 0.0f;
          break;
        case CUDNN_POINTWISE_BINARY_SELECT:
          y = Along(*t, out.dimensions)(i) != 0 ? first : second;
          break;
        default:
          return false;
      }
    }
  }
  write(into, std::move(out));
  return true;
}

bool Evaluation::run(const Object& operation) {
  const auto part = [&](int name) -> const Handle& { return operation.parts.at(name).front(); };
  switch (operation.type) {
    case CUDNN_BACKEND_OPERATION_POINTWISE_DESCRIPTOR:
      return pointwise(operation);
    case CUDNN_BACKEND_OPERATION_MATMUL_DESCRIPTOR: {
      Numbers out = empty(*part(CUDNN_ATTR_OPERATION_MATMUL_CDESC));
      multiply(read(part(CUDNN_ATTR_OPERATION_MATMUL_ADESC)),
               read(part(CUDNN_ATTR_OPERATION_MATMUL_BDESC)), out);
      write(part(CUDNN_ATTR_OPERATION_MATMUL_CDESC), std::move(out));
      return true;
    }
    case CUDNN_BACKEND_OPERATION_REDUCTION_DESCRIPTOR: {
      const Object& how = *part(CUDNN_ATTR_OPERATION_REDUCTION_DESC);
      Numbers out = empty(*part(CUDNN_ATTR_OPERATION_REDUCTION_YDESC));
      reduce(how.first<cudnnReduceTensorOp_t>(CUDNN_ATTR_REDUCTION_OPERATOR),
             read(part(CUDNN_ATTR_OPERATION_REDUCTION_XDESC)), out);
      write(part(CUDNN_ATTR_OPERATION_REDUCTION_YDESC), std::move(out));
      return true;
    }
    case CUDNN_BACKEND_OPERATION_RESHAPE_DESCRIPTOR: {
      Numbers out = empty(*part(CUDNN_ATTR_OPERATION_RESHAPE_YDESC));
      reshape(read(part(CUDNN_ATTR_OPERATION_RESHAPE_XDESC)), out);
      write(part(CUDNN_ATTR_OPERATION_RESHAPE_YDESC), std::move(out));
      return true;
    }
    default:
      return false;
  }
}

bool Evaluation::all(const std::vector<Handle>& operations) {
  for (const Handle& operation : operations)
    if (!run(*operation)) return false;
  return std::all_of(pointers_.begin(), pointers_.end(),
                     [&](const auto& given) { return used_.count(given.first) != 0; });
}

}  // namespace stub_cudnn
