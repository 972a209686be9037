// Goal: a journal of any bytes becomes whole records or an error, and records of any text become a
// part's progress or an error.
// Method: the input as the file; and, framed rightly, as its records, one a line.

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

#include "base/journal.h"
#include "ingest/part_journal.h"
#include "tests/support/memory_file_system.h"

using namespace librarian;

namespace {

constexpr const char* kPath = "/part/.journal";

void check_progress(FileSystem& files) {
  const auto progress = ingest::read_part_journal(files, "/part");
  if (!progress) {
    return;
  }
  for (std::size_t i = 0; i < progress->layers.size(); ++i) {
    LIB_CHECK(progress->layers[i].layer == static_cast<std::int32_t>(i) - 1);
  }
  LIB_CHECK(ingest::finished_layers(*progress, 3) <= progress->layers.size());
  // What was understood is written and read again as the same.
  const std::vector<std::string> records = ingest::journal_records(*progress);
  LIB_CHECK(JournalWriter::create(files, kPath, records).has_value());
  const auto again = ingest::read_part_journal(files, "/part");
  LIB_CHECK(again.has_value() && ingest::journal_records(*again) == records);
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  const std::string text(reinterpret_cast<const char*>(data), size);
  testing::MemoryFileSystem files;
  LIB_CHECK(files.make_directory("/part").has_value());
  LIB_CHECK(replace_file(files, kPath, text).has_value());
  const auto contents = read_journal(files, kPath);
  if (contents) {
    LIB_CHECK(contents->torn_bytes <= size);
    check_progress(files);
  }
  std::vector<std::string> records{
      R"({"type":"part","version":1,"identity":"i","part":0,"device_kind":"d"})"};
  std::size_t begin = 0;
  for (std::size_t end = text.find('\n'); end != std::string::npos; end = text.find('\n', begin)) {
    records.push_back(text.substr(begin, end - begin));
    begin = end + 1;
  }
  records.push_back(text.substr(begin));
  LIB_CHECK(JournalWriter::create(files, kPath, records).has_value());
  LIB_CHECK(read_journal(files, kPath)->records == records);
  check_progress(files);
  return 0;
}
