#include "model/safetensors.h"

#include <fmt/format.h>

#include <algorithm>
#include <bit>
#include <cstring>

#include "base/json.h"

namespace fastserve {
namespace {

constexpr uint64_t kMaxHeader = 100'000'000;  // the reference library's limit
constexpr const char* kDownloadAgain =
    "the file is damaged or incomplete: download or write it again";

static_assert(std::endian::native == std::endian::little, "the format is little-endian");

Error corrupt(const std::string& where, std::string what, const char* hint = kDownloadAgain) {
  return {ErrorCode::kCorrupt, std::move(what), where, hint};
}

struct Range {
  uint64_t begin = 0, end = 0;
};

Result<Range> parse_offsets(const Json& entry, const std::string& name, const std::string& where) {
  const Json* offsets = entry.find("data_offsets");
  if (offsets == nullptr || !offsets->is_array() || offsets->as_array().size() != 2 ||
      !offsets->as_array()[0].is_int() || !offsets->as_array()[1].is_int())
    return corrupt(where, fmt::format("tensor \"{}\" has no pair of whole data_offsets", name));
  const int64_t begin = offsets->as_array()[0].as_int(), end = offsets->as_array()[1].as_int();
  if (begin < 0 || end < begin)
    return corrupt(where, fmt::format("tensor \"{}\" has the offsets [{}, {}]", name, begin, end));
  return Range{static_cast<uint64_t>(begin), static_cast<uint64_t>(end)};
}

Result<std::vector<int64_t>> parse_shape(const Json& entry, const std::string& name,
                                         const std::string& where) {
  const Json* shape = entry.find("shape");
  if (shape == nullptr || !shape->is_array())
    return corrupt(where, fmt::format("tensor \"{}\" has no shape", name));
  std::vector<int64_t> out;
  for (const Json& extent : shape->as_array()) {
    if (!extent.is_int() || extent.as_int() < 0)
      return corrupt(where, fmt::format("tensor \"{}\" has the shape {}", name, shape->dump()));
    out.push_back(extent.as_int());
  }
  return out;
}

/// Bytes of a tensor of that shape; nothing when they pass 2^63.
std::optional<uint64_t> shape_bytes(const std::vector<int64_t>& shape, DType dtype) {
  int64_t bytes = static_cast<int64_t>(dtype_bytes(dtype));
  if (std::find(shape.begin(), shape.end(), 0) != shape.end()) return 0;
  for (const int64_t extent : shape)
    if (__builtin_mul_overflow(bytes, extent, &bytes)) return std::nullopt;
  return static_cast<uint64_t>(bytes);
}

struct Entry {
  const std::string* name;
  Range range;
};

/// The tensors must cover the data section from its first to its last byte, each byte once.
Status check_coverage(std::vector<Entry> entries, uint64_t data_bytes, const std::string& where) {
  std::sort(entries.begin(), entries.end(), [](const Entry& a, const Entry& b) {
    return std::pair(a.range.begin, a.range.end) < std::pair(b.range.begin, b.range.end);
  });
  uint64_t covered = 0;
  for (const Entry& entry : entries) {
    if (entry.range.end > data_bytes)
      return corrupt(where,
                     fmt::format("tensor \"{}\" ends at byte {} of the data, which has {} bytes",
                                 *entry.name, entry.range.end, data_bytes));
    if (entry.range.begin != covered)
      return corrupt(where,
                     fmt::format("tensor \"{}\" begins at byte {} of the data, but {}", *entry.name,
                                 entry.range.begin,
                                 entry.range.begin < covered
                                     ? fmt::format("the one before it ends at {}", covered)
                                     : fmt::format("nothing fills it from byte {}", covered)));
    covered = entry.range.end;
  }
  if (covered != data_bytes)
    return corrupt(where, fmt::format("the tensors end at byte {} of the data, which has {} bytes",
                                      covered, data_bytes));
  return {};
}

/// The JSON text of the header, checked against the length of the file.
Result<std::string_view> header_text(std::span<const std::byte> bytes, const std::string& where) {
  uint64_t length = 0;
  if (bytes.size() < sizeof length)
    return corrupt(where, fmt::format("the file ends at byte {}, before its 8-byte header length",
                                      bytes.size()));
  std::memcpy(&length, bytes.data(), sizeof length);
  if (length > kMaxHeader)
    return corrupt(
        where, fmt::format("the header claims {} bytes; the format allows {}", length, kMaxHeader));
  if (length > bytes.size() - sizeof length)
    return corrupt(
        where, fmt::format("the header claims {} bytes from byte 8, but the file ends at byte {}",
                           length, bytes.size()));
  return std::string_view(reinterpret_cast<const char*>(bytes.data()) + 8, length);
}

}  // namespace

Result<std::shared_ptr<SafetensorsFile>> SafetensorsFile::open(const Path& path) {
  FS_ASSIGN(MappedFile map, MappedFile::open(path));
  const std::span<const std::byte> bytes = map.bytes();
  FS_ASSIGN(std::shared_ptr<SafetensorsFile> file, parse(bytes, path.string()));
  file->file_ = std::move(map);
  return file;
}

Result<std::shared_ptr<SafetensorsFile>> SafetensorsFile::parse(std::span<const std::byte> bytes,
                                                                std::string where) {
  FS_ASSIGN(const std::string_view text, header_text(bytes, where));
  FS_ASSIGN(const Json header, Json::parse(text, where + " (header)"));
  if (!header.is_object()) return corrupt(where, "the header is not a JSON object");
  const std::span<const std::byte> data = bytes.subspan(8 + text.size());

  std::shared_ptr<SafetensorsFile> file(new SafetensorsFile);
  std::vector<Entry> entries;
  for (const auto& [name, entry] : header.as_object()) {
    if (name == "__metadata__") {
      if (!entry.is_object()) return corrupt(where, "__metadata__ is not an object");
      for (const auto& [key, value] : entry.as_object()) {
        if (!value.is_string())
          return corrupt(where, fmt::format("__metadata__ \"{}\" is not a string", key));
        file->metadata_.emplace(key, value.as_string());
      }
      continue;
    }
    FS_ASSIGN(const Range range, parse_offsets(entry, name, where));
    FS_ASSIGN(std::vector<int64_t> shape, parse_shape(entry, name, where));
    const Json* dtype_text = entry.find("dtype");
    if (dtype_text == nullptr || !dtype_text->is_string())
      return corrupt(where, fmt::format("tensor \"{}\" has no dtype", name));
    Result<DType> dtype = parse_dtype(dtype_text->as_string());
    if (!dtype.ok())
      return Error{dtype.error().code, fmt::format("tensor \"{}\": {}", name, dtype.error().what),
                   where, dtype.error().hint};
    TensorView view{*dtype, std::move(shape), {}};
    if (shape_bytes(view.shape, view.dtype) != range.end - range.begin)
      return corrupt(
          where, fmt::format("tensor \"{}\", {} {}, contradicts its {} bytes at offset {}", name,
                             dtype_name(view.dtype), view.shape_text(), range.end - range.begin,
                             range.begin));
    if (range.end <= data.size())  // else check_coverage refuses it
      view.bytes = data.subspan(range.begin, range.end - range.begin);
    entries.push_back({&name, range});
    file->tensors_.emplace(name, std::move(view));
  }
  FS_TRY(check_coverage(std::move(entries), data.size(), where));
  file->where_ = std::move(where);
  return file;
}

std::vector<std::string> SafetensorsFile::names() const {
  std::vector<std::string> out;
  out.reserve(tensors_.size());
  for (const auto& [name, view] : tensors_) out.push_back(name);
  return out;
}

bool SafetensorsFile::contains(std::string_view name) const {
  return tensors_.find(name) != tensors_.end();
}

Result<TensorView> SafetensorsFile::tensor(std::string_view name) const {
  const auto found = tensors_.find(name);
  if (found != tensors_.end()) return found->second;
  return Error{ErrorCode::kNotFound, fmt::format("there is no tensor \"{}\"", name), where_, ""};
}

}  // namespace fastserve
