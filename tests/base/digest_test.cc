#include "base/digest.h"

#include <gtest/gtest.h>

#include <string>
#include <vector>

namespace librarian {
namespace {

std::span<const std::byte> bytes_of(const std::string& text) {
  return std::as_bytes(std::span(text));
}

// Goal: the checksum is the one that Zarr readers compute.
// Method: the vectors of RFC 3720 B.4.
TEST(Crc32c, MatchesThePublishedVectors) {
  EXPECT_EQ(crc32c(bytes_of(std::string(32, '\0'))), 0x8A9136AAU);
  EXPECT_EQ(crc32c(bytes_of(std::string(32, '\xFF'))), 0x62A8AB43U);
  EXPECT_EQ(crc32c(bytes_of("123456789")), 0xE3069283U);
}

// Goal: the CRC that S3 states, also of lengths that are no multiple of eight.
TEST(Crc64Nvme, MatchesThePublishedVectorsAndContinues) {
  EXPECT_EQ(crc64_nvme(bytes_of("123456789")), 0xAE8B14860A799888U);
  EXPECT_EQ(crc64_nvme(bytes_of(std::string(4096, '\0'))), 0x6482D367EB22B64EU);
  EXPECT_EQ(crc64_nvme(bytes_of(std::string(4096, '\xFF'))), 0xC0DDBA7302ECA3ACU);
  EXPECT_EQ(crc64_nvme(bytes_of("")), 0U);
  const std::string text = "one layer of weights, once per pass";
  for (std::size_t at = 0; at <= text.size(); ++at) {
    EXPECT_EQ(crc64_nvme(bytes_of(text.substr(at)), crc64_nvme(bytes_of(text.substr(0, at)))),
              crc64_nvme(bytes_of(text)));
  }
}

TEST(Crc32c, ContinuesOverAnySplit) {
  const std::string text = "one layer of weights, once per pass";
  const std::uint32_t whole = crc32c(bytes_of(text));
  for (std::size_t at = 0; at <= text.size(); ++at) {
    EXPECT_EQ(crc32c(bytes_of(text.substr(at)), crc32c(bytes_of(text.substr(0, at)))), whole);
  }
}

// Goal: long inputs, which are taken in several lanes at once, have the same checksum.
// Method: against one byte at a time, which never fills a lane, around the lengths where lanes
// begin.
TEST(Crc32c, OfLongInputsEqualsByteByByte) {
  std::string text;
  std::uint32_t bytewise = 0;
  for (unsigned i = 0; i < 220000; ++i) {
    const std::string byte(1, static_cast<char>((i * 2654435761U) >> 13U));
    text += byte;
    bytewise = crc32c(bytes_of(byte), bytewise);
    const bool lanes_begin = i % 6144 >= 6140 || i % 98304 >= 98300;
    if (lanes_begin || i % 997 == 7) {
      ASSERT_EQ(crc32c(bytes_of(text)), bytewise) << i;
      ASSERT_EQ(crc32c(bytes_of(text.substr(7)), crc32c(bytes_of(text.substr(0, 7)))), bytewise);
    }
  }
}

TEST(Xxh3, StreamedEqualsWholeAndRoundTripsAsHex) {
  std::string text;
  StreamingXxh3 streaming;
  for (int i = 0; i < 100; ++i) {
    const std::string piece(static_cast<std::size_t>(i * 7), static_cast<char>(i));
    text += piece;
    streaming.update(bytes_of(piece));
  }
  const Digest128 digest = xxh3_128(text);
  EXPECT_EQ(streaming.digest(), digest);
  const auto parsed = Digest128::from_hex(digest.hex());
  ASSERT_TRUE(parsed);
  EXPECT_EQ(*parsed, digest);
  EXPECT_FALSE(Digest128::from_hex("xyz"));
  EXPECT_FALSE(Digest128::from_hex(std::string(32, 'G')));
}

TEST(Xxh3, MatchesTheReferenceValueOfTheEmptyInput) {
  EXPECT_EQ(xxh3_128(std::string_view()).hex(), "99aa06d3014798d86001c324468d497f");
}

TEST(Sha256, MatchesTheStandardVector) {
  EXPECT_EQ(sha256_hex("abc"), "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
}

TEST(Sha256, StreamedEqualsWholeOverAnySplit) {
  const std::string text = "whole weight files, hashed in the order of their bytes";
  for (std::size_t at = 0; at <= text.size(); ++at) {
    StreamingSha256 streaming;
    streaming.update(bytes_of(text.substr(0, at)));
    streaming.update(bytes_of(text.substr(at)));
    EXPECT_EQ(streaming.finish(), sha256_hex(text));
  }
}

}  // namespace
}  // namespace librarian
