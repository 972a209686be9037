// Goal: job.json and a part's zarr.json give consistent partitions and safe paths, or an error.
// Method: the input, sealed anew where it is JSON, is put where the readers look for it.

#include <cstddef>
#include <cstdint>
#include <string>

#include "activation_store/store_files.h"
#include "activation_store/store_names.h"
#include "tests/support/memory_file_system.h"

using namespace librarian;
using namespace librarian::activation_store;

namespace {

void check(const std::string& text) {
  librarian::testing::MemoryFileSystem files;
  LIB_CHECK(static_cast<bool>(files.make_directory("/s")));
  LIB_CHECK(static_cast<bool>(replace_file(files, "/s/job.json", text)));
  LIB_CHECK(static_cast<bool>(replace_file(files, "/s/zarr.json", text)));
  if (const auto job = read_job_file(files, "/s")) {
    std::uint64_t next = 0;
    for (const PartRange& part : job->parts) {
      LIB_CHECK(part.first_sample == next && part.samples > 0 && part.tokens >= part.samples);
      next += part.samples;
    }
  }
  if (const auto part = read_part_file(files, "/s")) {
    for (const FileRecord& file : part->files) {
      LIB_CHECK(is_safe_relative_path(file.path));
    }
    for (const ArrayRecord& array : part->arrays) {
      LIB_CHECK(is_safe_relative_path(array.name));
    }
  }
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  const std::string text(reinterpret_cast<const char*>(data), size);
  check(text);
  auto document = parse_json(text, "input");
  if (document) {
    Json& holder = document->contains("attributes") ? document->at("attributes") : *document;
    if (holder.is_object()) {
      holder.erase("xxh3");
      check(seal_json(*document));
    }
  }
  return 0;
}
