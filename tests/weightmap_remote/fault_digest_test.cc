// The faults that nothing but a digest reveals, played where the origin states one: what struck
// once is fetched anew, what strikes always is never called right.

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <map>

#include "base/digest.h"
#include "fault_kinds.h"
#include "fault_run.h"
#include "tests/support/memory_file_system.h"
#include "weightmap/remote/file_staging.h"

namespace librarian::weightmap::remote {
namespace {

using testing::FaultKind;
using testing::FaultTarget;

constexpr std::uint64_t kSegmentBytes = 1'000'001;  // Three; the middle one is struck.

class FaultDigestTest : public ::testing::TestWithParam<const FaultKind*> {
 protected:
  /// The object's digest over a server that strikes `blows` times, by our FileStaging.
  StagedObject hash(int blows) {
    const FaultKind& kind = *GetParam();
    std::map<std::uint64_t, int> attempts;  // By where the request ends.
    const testing::LoopbackServer server([&](const testing::HttpRequest& request) {
      const int attempt = attempts[request.range->end]++;
      // The opening request asks for less; tries that go on end where the first one does.
      const bool aimed_at =
          kind.target == FaultTarget::everything || request.range->end == 2 * kSegmentBytes;
      return aimed_at && attempt < blows * kind.times
                 ? kind.strike({request, attempt % kind.times, object_, "", ""})
                 : testing::honest(object_, request);
    });
    TransportOptions transport_options;
    const auto transport = make_transport(real_clock(), transport_options);
    FetcherOptions options;
    options.retry.backoff_base = Duration(0);
    Fetcher fetcher(*transport, real_clock(), options);
    const auto opened = fetcher.open(*parse_uri(server.url("/model")), 100, {});
    EXPECT_TRUE(opened) << opened.error().message();
    ObjectInfo stated = opened->info;
    stated.sha256 = sha256_hex(object_);
    FileStagingOptions staging_options;
    staging_options.segment_bytes = kSegmentBytes;
    staging_options.slabs = 3;
    librarian::testing::MemoryFileSystem files;
    FileStaging staging(fetcher, files, real_clock(), staging_options);
    auto hashed = staging.hash(opened->id, stated, {});
    EXPECT_TRUE(hashed) << hashed.error().message();
    return hashed ? *hashed : StagedObject{};
  }

  const std::string object_ = testing::test_object(testing::kFaultObjectBytes);
};

TEST_P(FaultDigestTest, WhatStrikesOnceIsFetchedAnew) {
  if (GetParam()->target == FaultTarget::everything) {
    GTEST_SKIP() << "a fault of the server itself";
  }
  const StagedObject hashed = hash(1);
  EXPECT_TRUE(hashed.matches);
  EXPECT_EQ(hashed.sha256, sha256_hex(object_));
}

TEST_P(FaultDigestTest, WhatStrikesAlwaysIsCaught) {
  const StagedObject hashed = hash(1000);
  EXPECT_FALSE(hashed.matches);
  EXPECT_NE(hashed.sha256, sha256_hex(object_));
}

INSTANTIATE_TEST_SUITE_P(Kinds, FaultDigestTest, ::testing::ValuesIn(testing::faults_for_digests()),
                         [](const auto& kind) { return kind.param->name; });

}  // namespace
}  // namespace librarian::weightmap::remote
