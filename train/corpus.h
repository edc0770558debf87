// Training data as it lies on disk: texts or pre-tokenised shards.
#pragma once

#include <string_view>
#include <vector>

#include "train/token_file.h"

namespace fastserve {

/// The documents of a file or a directory, in the order of the files' paths.
///
/// A .txt or .md file is one document; each line of a .jsonl file is one, its `text` field. .fstok
/// and .bin files are pre-tokenised (see TokenFile). Folders are searched to any depth; other files
/// and names that begin with a dot are passed over. A file whose name without its endings is "val",
/// "valid", "validation" or "test", or holds "_val" or "-val", goes to the validation split whole.
/// Owns:    all texts in memory.
/// Threads: const calls from any thread.
class Corpus {
 public:
  struct Document {
    std::string_view text;
    bool validation = false;  ///< its file's name says so
  };
  struct Shard {
    TokenFile file;
    bool validation = false;
  };

  /// kNotFound: no such path, or no data below it. kInvalidArgument names the file, and where it
  /// can the byte: an empty file, binary or badly encoded text, text mixed with shards, a line
  /// without `text`.
  static Result<Corpus> load(const Path& path);

  const std::vector<Document>& documents() const { return documents_; }
  const std::vector<Shard>& shards() const { return shards_; }  ///< either these or documents
  size_t files() const { return files_; }
  size_t bytes() const { return bytes_; }  ///< of text
  const Path& path() const { return path_; }

 private:
  Status add_text(const Path& file, std::string text, bool validation);
  Status add_lines(const Path& file, const std::string& lines, bool validation);
  void keep(std::string text, bool validation);

  Path path_;
  std::vector<std::shared_ptr<const std::string>> texts_;
  std::vector<Document> documents_;
  std::vector<Shard> shards_;
  size_t files_ = 0, bytes_ = 0;
};

/// Offset of the first byte that is not part of well-formed UTF-8 (RFC 3629); npos when all is
/// well.
size_t first_invalid_utf8(std::string_view text);

}  // namespace fastserve
