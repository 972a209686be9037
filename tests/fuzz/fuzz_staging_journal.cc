// Goal: a staging journal of any bytes says something about the object's segments or nothing; what
// it says of segments is within the object.
// Method: the input as the file; and, framed rightly, as its records behind a good header, one a
// line.

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

#include "base/journal.h"
#include "tests/support/memory_file_system.h"
#include "weightmap/remote/staging_directory.h"

using namespace librarian;
namespace remote = librarian::weightmap::remote;

namespace {

constexpr const char* kPath = "/x.journal";
constexpr std::uint64_t kObjectBytes = 1050;
constexpr std::uint64_t kSegmentBytes = 100;

void check(FileSystem& files) {
  const auto journal = remote::read_staging_journal(files, kPath, kObjectBytes, kSegmentBytes);
  LIB_CHECK(journal.has_value());
  if (*journal) {
    LIB_CHECK((*journal)->segment_crcs.size() == 11);
    LIB_CHECK((*journal)->sha256.empty() || (*journal)->sha256.size() == 64);
  }
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  const std::string text(reinterpret_cast<const char*>(data), size);
  testing::MemoryFileSystem files;
  LIB_CHECK(replace_file(files, kPath, text).has_value());
  check(files);
  std::vector<std::string> records{remote::staging_header_record(kObjectBytes, kSegmentBytes)};
  std::size_t begin = 0;
  for (std::size_t end = text.find('\n'); end != std::string::npos; end = text.find('\n', begin)) {
    records.push_back(text.substr(begin, end - begin));
    begin = end + 1;
  }
  records.push_back(text.substr(begin));
  LIB_CHECK(JournalWriter::create(files, kPath, records).has_value());
  check(files);
  return 0;
}
