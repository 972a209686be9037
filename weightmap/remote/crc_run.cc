#include "weightmap/remote/crc_run.h"

#include <algorithm>

#include "base/digest.h"

namespace librarian::weightmap::remote {

std::optional<std::uint32_t> crc_of(const CrcRuns& runs, ByteRange range) {
  std::uint32_t crc = 0;
  std::uint64_t at = range.begin;
  auto run = std::lower_bound(
      runs.begin(), runs.end(), range.begin,
      [](const CrcRun& one, std::uint64_t begin) { return one.range.begin < begin; });
  for (; at < range.end; ++run) {
    if (run == runs.end() || run->range.begin != at || run->range.end > range.end) {
      return std::nullopt;
    }
    crc = crc32c_combine(crc, run->crc32c, run->range.size());
    at = run->range.end;
  }
  return crc;
}

void append_runs(CrcRuns& runs, const CrcRuns& more, std::uint64_t end) {
  for (const CrcRun& run : more) {
    if (run.range.end <= end) {
      runs.push_back(run);
    }
  }
}

}  // namespace librarian::weightmap::remote
