#include "train/dataset.h"

#include <doctest/doctest.h>
#include <sys/stat.h>

#include <cstdlib>
#include <fstream>

using namespace fastserve;

namespace {

/// One id per byte; "<eos>" is 256.
class ByteTokenizer final : public Tokenizer {
 public:
  Result<std::vector<int32_t>> encode(std::string_view text, const EncodeOptions&) const override {
    std::vector<int32_t> ids;
    for (const char c : text) ids.push_back(static_cast<unsigned char>(c));
    return ids;
  }
  std::string decode(std::span<const int32_t> ids, bool) const override {
    return std::string(ids.begin(), ids.end());
  }
  std::unique_ptr<Stream> open_stream(bool) const override { return nullptr; }
  int vocab_size() const override { return 257; }
  std::optional<int32_t> token_id(std::string_view token) const override {
    if (token == "<eos>") return 256;
    return std::nullopt;
  }
  std::string token_text(int32_t) const override { return ""; }
  bool is_special(int32_t id) const override { return id == 256; }
  const std::string& json() const override { return json_; }

 private:
  std::string json_ = "{}";
};

class Folder {
 public:
  Folder() {
    std::string name = (std::filesystem::temp_directory_path() / "fastserve-XXXXXX").string();
    REQUIRE(::mkdtemp(name.data()) != nullptr);
    path_ = name;
  }
  ~Folder() { std::filesystem::remove_all(path_); }
  Folder& file(const std::string& name, std::string_view text) {
    std::filesystem::create_directories((path_ / name).parent_path());
    std::ofstream(path_ / name, std::ios::binary) << text;
    return *this;
  }
  const Path& path() const { return path_; }

 private:
  Path path_;
};

std::string text_of(const TokenArray& tokens) {
  std::string text;
  for (size_t i = 0; i < tokens.size(); i++)
    text += tokens[i] == 256 ? '|' : static_cast<char>(tokens[i]);
  return text;
}

Error refused(const Folder& folder) {
  const auto corpus = Corpus::load(folder.path());
  REQUIRE_FALSE(corpus.ok());
  return corpus.error();
}

Dataset built(const Path& path, double fraction = 0.1, int block = 4) {
  const auto corpus = Corpus::load(path);
  REQUIRE(corpus.ok());
  const ByteTokenizer tokenizer;
  auto data = Dataset::build(*corpus, &tokenizer, fraction, block);
  REQUIRE(data.ok());
  return std::move(*data);
}

}  // namespace

TEST_CASE("a single text is split by position: the last tenth is held out") {
  Folder folder;
  folder.file("a.txt", "abcdefghijABCDEFGHIJ");
  const Dataset data = built(folder.path());
  CHECK(text_of(data.train) == "abcdefghijABCDEFGH");
  CHECK(text_of(data.validation) == "IJ");
  CHECK(built(folder.path() / "a.txt").fingerprint == data.fingerprint);
}

TEST_CASE("the split never cuts a character") {
  Folder folder;
  folder.file("a.txt", "abcdefg\xc3\xa9xyz");  // the cut falls on the second byte of the e acute
  const Dataset data = built(folder.path(), 0.35);
  CHECK(text_of(data.train) == "abcdefg");
}

TEST_CASE("texts, markdown and json lines are read in path order with an end-of-text between") {
  Folder folder;
  folder.file("b.jsonl", "{\"text\": \"two\"}\n\n{\"text\": \"three\", \"id\": 3}\n")
      .file("a.md", "one")
      .file("c/d.txt", "four")
      .file("notes.pdf", "no")
      .file(".hidden.txt", "no");
  const Dataset data = built(folder.path(), 0);
  CHECK(text_of(data.train) == "one|two|three|four|");
  CHECK(data.documents == 4);
  CHECK(data.files == 3);
}

TEST_CASE("many documents are split whole, and a new one moves no other") {
  Folder folder;
  std::string lines;
  for (int i = 0; i < 300; i++) lines += "{\"text\": \"document " + std::to_string(i) + "\"}\n";
  folder.file("a.jsonl", lines);
  const Dataset before = built(folder.path());
  CHECK(before.documents == 300);
  CHECK(before.validation_documents > 10);
  CHECK(before.validation_documents < 60);
  CHECK(text_of(before.validation).starts_with("document "));
  folder.file("0.txt", "something new");
  const std::string after = text_of(built(folder.path()).validation);
  CHECK(after.find(text_of(before.validation)) != std::string::npos);
}

TEST_CASE("a file named as validation data is the validation split") {
  Folder folder;
  folder.file("train.txt", "aaaaaaaaaa").file("val.txt", "bbb");
  const Dataset data = built(folder.path());
  CHECK(text_of(data.train) == "aaaaaaaaaa|");
  CHECK(text_of(data.validation) == "bbb|");
}

TEST_CASE("what cannot be trained on is refused by name, with the way out") {
  CHECK(Corpus::load("/nowhere/at/all").error().code == ErrorCode::kNotFound);
  Folder empty;
  CHECK(refused(empty).what == "holds no text to train on");
  Folder nothing;
  nothing.file("a.txt", "");
  CHECK(refused(nothing).where.ends_with("a.txt"));
  Folder binary;
  binary.file("a.txt", std::string_view("text\0more", 9));
  CHECK(refused(binary).what == "is binary: there is a NUL at byte 4");
  Folder latin;
  latin.file("a.txt", "caf\xe9 au lait");
  CHECK(refused(latin).what == "is not UTF-8 at byte 3");
  Folder wide;
  wide.file("a.txt", std::string_view("\xff\xfeh\0i\0", 6));
  CHECK(refused(wide).what == "is UTF-16, not UTF-8");
  CHECK(refused(wide).hint == "convert it: iconv -f UTF-16 -t utf-8");
  for (const char* line : {"{\"body\": \"y\"}", "{\"text\": 3}", "[1]", "\"text\"",
                           "{\"text\": \"y", "{\"text\": \"y\"} and more"}) {
    CAPTURE(line);
    Folder lines;
    lines.file("a.jsonl", std::string("{\"text\": \"x\"}\n") + line + "\n");
    CHECK(refused(lines).where.ends_with("a.jsonl line 2"));
    CHECK(refused(lines).hint.find("must look like") != std::string::npos);
  }
  Folder both;
  both.file("a.txt", "text").file("b.bin", "abcd");
  CHECK(refused(both).what == "holds both texts and pre-tokenised shards");
}

TEST_CASE("a path that cannot even be looked at is refused, and a link to itself is passed over") {
  CHECK(Corpus::load(Path(std::string(5000, 'a'))).error().code == ErrorCode::kIo);
  Folder folder;
  folder.file("a.txt", "text");
  std::filesystem::create_symlink("b.txt", folder.path() / "b.txt");
  CHECK(Corpus::load(folder.path())->files() == 1);
  CHECK_FALSE(Corpus::load(folder.path() / "b.txt").ok());
  // Opening a pipe would wait for its writer for ever.
  REQUIRE(::mkfifo((folder.path() / "c.txt").c_str(), 0600) == 0);
  CHECK(Corpus::load(folder.path())->files() == 1);
  CHECK(Corpus::load(folder.path() / "c.txt").error().code == ErrorCode::kInvalidArgument);
}

TEST_CASE("a byte order mark is no part of a text, nor of json lines") {
  Folder folder;
  folder.file("a.txt", "\xef\xbb\xbfone").file("b.jsonl", "\xef\xbb\xbf{\"text\": \"two\"}\n");
  CHECK(text_of(built(folder.path(), 0, 2).train) == "one|two|");
}

TEST_CASE("fewer tokens than one sequence needs are refused with both figures") {
  Folder folder;
  folder.file("a.txt", "abcdef");
  const auto corpus = Corpus::load(folder.path());
  const ByteTokenizer tokenizer;
  const auto data = Dataset::build(*corpus, &tokenizer, 0, 6);
  REQUIRE_FALSE(data.ok());
  CHECK(data.error().what == "leaves 6 tokens for training, and one sequence of 6 needs 7");
}

TEST_CASE("UTF-8 is checked as RFC 3629 has it") {
  CHECK(first_invalid_utf8("plain and \xf0\x9f\x98\x80 \xed\x9f\xbf") == std::string_view::npos);
  CHECK(first_invalid_utf8("12345678\xc0\x80") == 8);  // long form
  CHECK(first_invalid_utf8("a\xed\xa0\x80") == 1);     // surrogate
  CHECK(first_invalid_utf8("\xf4\x90\x80\x80") == 0);  // past U+10FFFF
  CHECK(first_invalid_utf8("ab\xe2\x82") == 2);        // cut off
  CHECK(first_invalid_utf8("\x80") == 0);
}

TEST_CASE("shards of tokens are read in all three formats") {
  Folder folder;
  TokenFile file;
  const std::vector<int32_t> ids{1, 2, 70000, 4, 5, 6, 7, 8, 9, 10};
  file.tokens.append(ids);
  file.vocab_size = 70001;
  file.end_of_text = 0;
  REQUIRE(write_token_file(folder.path() / "a.fstok", file).ok());
  const auto back = read_token_file(folder.path() / "a.fstok");
  REQUIRE(back.ok());
  CHECK(back->tokens[2] == 70000);
  CHECK(back->end_of_text == 0);
  CHECK(back->tokens.fingerprint() == file.tokens.fingerprint());
  folder.file("raw.bin", std::string_view("\1\0\2\0\3\0", 6));
  CHECK(read_token_file(folder.path() / "raw.bin")->tokens[2] == 3);
  std::string llmc(1024, '\0');
  const int32_t header[3] = {20240520, 1, 2};
  llmc.replace(0, 12, reinterpret_cast<const char*>(header), 12);
  folder.file("llmc.bin", llmc + std::string("\5\0\6\0", 4));
  CHECK(read_token_file(folder.path() / "llmc.bin")->tokens.size() == 2);
  folder.file("odd.bin", "abc");
  CHECK(read_token_file(folder.path() / "odd.bin").error().code == ErrorCode::kCorrupt);
  folder.file("short.fstok", "FSTOK1\2");
  CHECK(read_token_file(folder.path() / "short.fstok").error().what == "ends inside its header");
  folder.file("lying.bin", llmc + std::string("\5\0", 2));
  CHECK(read_token_file(folder.path() / "lying.bin").error().code == ErrorCode::kCorrupt);
}

TEST_CASE("a directory of shards trains without a tokenizer") {
  Folder folder;
  folder.file("train.bin", std::string_view("\1\0\2\0\3\0\4\0\5\0\6\0", 12))
      .file("val.bin", std::string_view("\7\0\10\0", 4));
  const auto corpus = Corpus::load(folder.path());
  const auto data = Dataset::build(*corpus, nullptr, 0.1, 4);
  REQUIRE(data.ok());
  CHECK(data->train.size() == 6);
  CHECK(data->validation[1] == 8);
  CHECK(data->vocab_size == 9);
}
