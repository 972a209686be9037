#include "ingest/kept_rows.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

namespace librarian::ingest {
namespace {

using ::testing::ElementsAre;
using ::testing::IsEmpty;
using Kind = Positions::Kind;

// Samples of 3, 1 and 4 tokens.
const std::vector<std::int64_t> kOffsets{0, 3, 4, 8};
const std::vector<std::uint8_t> kMask{1, 0, 1, 1, 0, 0, 1, 0};

std::vector<std::int64_t> kept(const Positions& positions) {
  TokenData tokens;
  tokens.input_ids.resize(kMask.size());
  tokens.offsets = kOffsets;
  tokens.loss_mask = kMask;
  return kept_rows(tokens, {0, kOffsets.size() - 1, kMask.size()}, positions);
}

TEST(KeptRows, AreThoseOfTheMask) { EXPECT_THAT(kept({Kind::loss}), ElementsAre(0, 2, 3, 6)); }

// Catches: a row that would predict the next sample's first token.
TEST(KeptRows, PredictTokensOfTheirOwnSampleOnly) {
  EXPECT_THAT(kept({Kind::loss_next}), ElementsAre(1, 5));
}

TEST(KeptRows, CountFromEitherEndAndStayInside) {
  EXPECT_THAT(kept({Kind::last}), ElementsAre(2, 3, 7));
  EXPECT_THAT(kept({Kind::range, 1, 2}), ElementsAre(1, 2, 5, 6));
  EXPECT_THAT(kept({Kind::range, -2, -1}), ElementsAre(1, 2, 3, 6, 7));
  EXPECT_THAT(kept({Kind::range, 1, -1}), ElementsAre(1, 2, 5, 6, 7));
  EXPECT_THAT(kept({Kind::range, 9, 12}), IsEmpty());
}

}  // namespace
}  // namespace librarian::ingest
