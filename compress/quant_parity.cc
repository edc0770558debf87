#include "compress/quant_parity.h"

#include <fmt/format.h>

#include <cmath>
#include <cstring>
#include <set>

#include "base/json.h"
#include "compress/calibration.h"
#include "compress/pruning.h"
#include "compress/quantisers.h"
#include "model/safetensors.h"

namespace fastserve {
namespace {

// Codes and masks are exact. Norms are recorded as floats; errors are sums of a million doubles
// over weights rounded to float.
constexpr double kNormTolerance = 1e-6, kErrorTolerance = 1e-5;
// int4-g128 differs from the recorded rule by the rounding of its scale to f16 (2^-11 of a weight).
constexpr double kHalfScaleTolerance = 1e-2;

struct Matrix {
  std::string name;
  int rows = 0, cols = 0;
  std::vector<float> weights;
};

/// ggml's on-disk blocks: the f16 scale, then the codes of 32 inputs.
std::vector<float> ggml_blocks(const QuantisedMatrix& matrix) {
  std::vector<float> bytes;  // as floats, like every tensor that is compared
  const bool nibbles = format_bits(matrix.format) == 4;
  for (size_t block = 0; block < matrix.scales.size(); block++) {
    const uint16_t scale = to_float16(matrix.scales[block]).bits;
    bytes.push_back(static_cast<float>(scale & 255));
    bytes.push_back(static_cast<float>(scale >> 8));
    const uint8_t* codes = matrix.codes.data() + 32 * block;
    for (int i = 0; i < (nibbles ? 16 : 32); i++)
      bytes.push_back(static_cast<float>(nibbles ? codes[i] | codes[i + 16] << 4 : codes[i]));
  }
  return bytes;
}

class Checker {
 public:
  Checker(const TensorSource& tensors, const Json& listed) : tensors_(tensors), listed_(listed) {}

  Status run() {
    if (tensors_.contains("X")) FS_TRY(read_activations());
    for (const std::string& name : tensors_.names()) {
      if (!name.ends_with(".W")) continue;
      FS_ASSIGN(const TensorView view, tensors_.tensor(name));
      if (view.shape.size() != 2 || view.elements() == 0 || (cols_ != 0 && view.shape[1] != cols_))
        return corrupt(
            fmt::format("\"{}\" is {}, and X has {} columns", name, view.shape_text(), cols_));
      Matrix matrix{name.substr(0, name.size() - 2), static_cast<int>(view.shape[0]),
                    static_cast<int>(view.shape[1]), view.to_floats()};
      FS_TRY(check_formats(matrix));
      FS_TRY(check_groups(matrix));
      FS_TRY(check_masks(matrix));
      skip_others(matrix.name);
    }
    if (checks_.empty()) return corrupt("holds no matrix \"NAME.W\" to check");
    return {};
  }
  std::vector<QuantisationCheck> take() { return std::move(checks_); }

 private:
  Error corrupt(std::string what) const {
    return {ErrorCode::kCorrupt, std::move(what), tensors_.where(), "record the reference again"};
  }

  Status read_activations() {
    FS_ASSIGN(const TensorView view, tensors_.tensor("X"));
    if (view.shape.size() != 2 || view.elements() == 0) return corrupt("X is no matrix");
    rows_ = static_cast<int>(view.shape[0]);
    cols_ = static_cast<int>(view.shape[1]);
    activations_ = view.to_floats();
    ChannelNorms sums;
    sums.observe("X", activations_.data(), rows_, cols_);
    norms_ = sums.norms("X");
    if (!tensors_.contains("X_col_norm")) return {};
    FS_ASSIGN(const TensorView recorded, tensors_.tensor("X_col_norm"));
    if (recorded.elements() != cols_)
      return corrupt("X_col_norm has another length than X has columns");
    double worst = 0;
    const std::vector<float> wanted = recorded.to_floats();
    for (size_t i = 0; i < wanted.size(); i++)
      worst = std::max(worst, std::fabs(norms_[i] - wanted[i]) /
                                  std::max(1e-30, static_cast<double>(wanted[i])));
    add("X: channel norms, relative", worst, kNormTolerance);
    return {};
  }

  void add(std::string quantity, double error, double tolerance) {
    checks_.push_back({std::move(quantity), error, tolerance, error <= tolerance});
  }

  /// The listed output errors of one matrix; nullptr without a list.
  const Json* listed_errors(const std::string& name) const {
    const Json* matrices = listed_.find("matrices");
    const Json* entry = matrices == nullptr ? nullptr : matrices->find(name);
    const Json* errors = entry == nullptr ? nullptr : entry->find("error");
    return errors != nullptr && errors->is_object() ? errors : nullptr;
  }

  void skip_others(const std::string& name) {
    const Json* errors = listed_errors(name);
    if (errors == nullptr || activations_.empty()) return;
    for (const auto& [method, error] : errors->as_object())
      if (!compared_.contains(method))
        checks_.push_back({fmt::format("{}: {}", name, method), 0, 0, true, true});
    compared_.clear();
  }

  /// Counts the numbers that differ from a recorded tensor, if it is recorded.
  template <class T>
  Status exact(const Matrix& matrix, const std::string& what, const std::vector<T>& got) {
    const std::string name = matrix.name + "." + what;
    if (!tensors_.contains(name)) return {};
    FS_ASSIGN(const TensorView view, tensors_.tensor(name));
    const std::vector<float> wanted = view.to_floats();
    if (wanted.size() != got.size())
      return corrupt(fmt::format("\"{}\" holds {} numbers, and {} belong to its matrix", name,
                                 wanted.size(), got.size()));
    double differing = 0;
    for (size_t i = 0; i < got.size(); i++) differing += wanted[i] != static_cast<float>(got[i]);
    add(fmt::format("{}: {}, differing", matrix.name, what), differing, 0);
    return {};
  }

  /// ||X (W - W')^T|| / ||X W^T|| against the figure listed for `method`.
  void output_error(const Matrix& matrix, const std::string& method,
                    const std::vector<float>& changed, double tolerance = kErrorTolerance,
                    const char* as = nullptr) {
    const Json* errors = listed_errors(matrix.name);
    const Json* listed = errors == nullptr ? nullptr : errors->find(method);
    if (listed == nullptr || !listed->is_number() || activations_.empty()) return;
    compared_.insert(method);
    const size_t cols = static_cast<size_t>(matrix.cols);
    double lost = 0, whole = 0;
    for (size_t t = 0; t < static_cast<size_t>(rows_); t++)
      for (size_t r = 0; r < static_cast<size_t>(matrix.rows); r++) {
        double original = 0, difference = 0;
        for (size_t c = 0; c < cols; c++) {
          const double x = activations_[t * cols + c], w = matrix.weights[r * cols + c];
          original += x * w;
          difference += x * (w - static_cast<double>(changed[r * cols + c]));
        }
        lost += difference * difference;
        whole += original * original;
      }
    const double error = std::sqrt(lost / whole);
    add(fmt::format("{}: {} output error, relative to the one listed", matrix.name,
                    as ? as : method.c_str()),
        std::fabs(error / listed->as_double() - 1), tolerance);
  }

  Status check_formats(const Matrix& m) {
    const std::pair<const char*, WeightFormat> formats[] = {
        {"int8_row", WeightFormat::kInt8Row},
        {"q8_0", WeightFormat::kInt8Group32},
        {"q4_0", WeightFormat::kInt4Group32},
        {"rtn_int4_g128_sym", WeightFormat::kInt4Group128}};
    for (const auto& [method, format] : formats) {
      FS_ASSIGN(const QuantisedMatrix q, quantise(m.weights, m.rows, m.cols, format, m.name));
      const std::string at = method;
      std::vector<float> values(m.weights.size());
      for (int row = 0; row < m.rows; row++)
        q.dequantise_row(
            row, std::span(values).subspan(static_cast<size_t>(row) * static_cast<size_t>(m.cols),
                                           static_cast<size_t>(m.cols)));
      if (format == WeightFormat::kInt4Group128) {  // its codes are those of check_groups
        output_error(m, at, values, kHalfScaleTolerance, "int4-g128");
        continue;
      }
      std::vector<int> codes(q.codes.begin(), q.codes.end());
      if (format_bits(format) == 8)
        for (int& code : codes) code = static_cast<int8_t>(code);
      FS_TRY(exact(m, at + ".codes", codes));
      FS_TRY(exact(m, at + (format == WeightFormat::kInt8Row ? ".scales" : ".d"), q.scales));
      if (format_group(format) == 32 && m.cols % 32 == 0)
        FS_TRY(exact(m, at + ".raw", ggml_blocks(q)));
      output_error(m, at, values);
    }
    return {};
  }

  Status check_groups(const Matrix& m) {
    for (const int bits : {3, 4})
      for (const bool symmetric : {true, false}) {
        const std::string at = fmt::format("rtn_int{}_g128_{}", bits, symmetric ? "sym" : "asym");
        const GroupCodes q = quantise_groups(m.weights, m.rows, m.cols, bits, 128, symmetric);
        FS_TRY(exact(m, at + ".codes", q.codes));
        FS_TRY(exact(m, at + ".scales", q.scales));
        FS_TRY(exact(m, at + ".zeros", q.zeros));
        output_error(m, at, q.dequantised());
        if (bits != 4 || !symmetric) continue;
        FS_ASSIGN(const QuantisedMatrix packed,
                  quantise(m.weights, m.rows, m.cols, WeightFormat::kInt4Group128, m.name));
        std::vector<int> codes(packed.codes.begin(), packed.codes.end());
        for (int& code : codes) code -= 8;
        FS_TRY(exact(m, at + ".codes", codes));
      }
    return {};
  }

  Status check_masks(const Matrix& m) {
    struct Case {
      const char* name;
      PruningScope scope;
      bool wanda;
    };
    for (const Case& c : {Case{"magnitude50_tensor", PruningScope::kTensor, false},
                          Case{"magnitude50_row", PruningScope::kRow, false},
                          Case{"magnitude_2_4", PruningScope::k2of4, false},
                          Case{"wanda50_row", PruningScope::kRow, true},
                          Case{"wanda_2_4", PruningScope::k2of4, true}}) {
      if (c.wanda && norms_.empty()) continue;
      const std::span<const double> norms =
          c.wanda ? std::span<const double>(norms_) : std::span<const double>();
      const std::vector<uint8_t> mask =
          pruning_mask(m.weights, m.rows, m.cols, norms, c.scope, 0.5);
      FS_TRY(exact(m, std::string("mask.") + c.name, mask));
      std::vector<float> kept = m.weights;
      apply_mask(mask, kept);
      output_error(m, std::string("prune_") + c.name, kept);
    }
    return {};
  }

  const TensorSource& tensors_;
  const Json& listed_;
  int rows_ = 0, cols_ = 0;
  std::vector<float> activations_;
  std::vector<double> norms_;
  std::set<std::string> compared_;  ///< methods of the matrix at hand
  std::vector<QuantisationCheck> checks_;
};

}  // namespace

Result<std::vector<QuantisationCheck>> check_quantisation(const Path& directory) {
  FS_ASSIGN(const std::shared_ptr<SafetensorsFile> tensors,
            SafetensorsFile::open(directory / "quant.safetensors"));
  Json listed;
  if (std::filesystem::exists(directory / "quant.json")) {
    FS_ASSIGN(const std::string text, read_file(directory / "quant.json", uint64_t{64} << 20));
    FS_ASSIGN(listed, Json::parse(text, (directory / "quant.json").string()));
  }
  Checker checker(*tensors, listed);
  FS_TRY(checker.run());
  return checker.take();
}

}  // namespace fastserve
