#include "base/units.h"

#include <gtest/gtest.h>

namespace librarian {
namespace {

using namespace std::chrono_literals;

TEST(Units, ReadsSizesAsPeopleWriteThem) {
  EXPECT_EQ(parse_bytes("16GiB").value(), 16 * kGiB);
  EXPECT_EQ(parse_bytes("500MB").value(), 500'000'000U);
  EXPECT_EQ(parse_bytes("1.5 kib").value(), 1536U);
  EXPECT_EQ(parse_bytes("4096").value(), 4096U);
  EXPECT_EQ(parse_bytes("0").value(), 0U);
}

TEST(Units, RefusesWhatIsNotASize) {
  for (const char* text : {"", "GiB", "-1", "16 GiBs", "1e99", "nan", "inf", "0x10", "1 2"}) {
    EXPECT_FALSE(parse_bytes(text)) << text;
  }
}

TEST(Units, ReadsTimesAndNeedsAUnitExceptForZero) {
  EXPECT_EQ(parse_duration("10min").value(), 10min);
  EXPECT_EQ(parse_duration("1.5s").value(), 1500ms);
  EXPECT_EQ(parse_duration("0").value(), 0s);
  EXPECT_FALSE(parse_duration("10"));
  EXPECT_FALSE(parse_duration("-1s"));
}

TEST(Units, PrintsThreeSignificantDigits) {
  EXPECT_EQ(format_bytes(17), "17 B");
  EXPECT_EQ(format_bytes(kGiB + kGiB / 2), "1.50 GiB");
  EXPECT_EQ(format_bytes(100 * kMiB), "100 MiB");
  EXPECT_EQ(format_count(1234567), "1,234,567");
  EXPECT_EQ(format_count(123), "123");
  EXPECT_EQ(format_duration(200s), "3min 20s");
  EXPECT_EQ(format_duration(7500s), "2h 05min");
}

}  // namespace
}  // namespace librarian
