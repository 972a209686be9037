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

// Catches: a wrong power of x for some length, a wrong order of the two, empty parts.
TEST(Crc32c, CombinesAnySplit) {
  std::string text;
  for (unsigned i = 0; i < 700; ++i) {
    text += static_cast<char>((i * 2654435761U) >> 13U);
  }
  const std::uint32_t whole = crc32c(bytes_of(text));
  for (std::size_t at = 0; at <= text.size(); ++at) {
    EXPECT_EQ(crc32c_combine(crc32c(bytes_of(text.substr(0, at))),
                             crc32c(bytes_of(text.substr(at))), text.size() - at),
              whole)
        << at;
  }
  EXPECT_EQ(crc32c_combine(0, 0, 0), 0U);
  EXPECT_EQ(crc32c_combine(whole, 0, 0), whole) << "nothing behind it";
  EXPECT_EQ(crc32c_combine(0, whole, text.size()), whole) << "nothing before it";
}

// Goal: lengths that no memory holds.
// Method: zeros doubled 40 times, against all of the shorter ones in a row and one more.
TEST(Crc32c, CombinesLongParts) {
  constexpr std::uint64_t kBytes = 1U << 20U;
  const std::string zeros(kBytes, '\0');
  std::vector<std::uint32_t> doubled = {crc32c(bytes_of(zeros))};
  for (unsigned k = 0; k < 40; ++k) {
    doubled.push_back(crc32c_combine(doubled[k], doubled[k], kBytes << k));
  }
  EXPECT_EQ(doubled[3], crc32c(bytes_of(std::string(8 * kBytes, '\0'))));
  std::uint32_t row = doubled[0];
  for (unsigned k = 1; k < 40; ++k) {
    row = crc32c_combine(row, doubled[k], kBytes << k);
  }
  EXPECT_EQ(crc32c_combine(row, doubled[0], kBytes), doubled[40]);
  EXPECT_EQ(crc32c_combine(doubled[0], row, (kBytes << 40U) - kBytes), doubled[40]);
}

// Goal: a copy that is the bytes, their checksum, and nothing beside them.
// Method: every alignment of source and destination, lengths around a line and around the lanes.
TEST(Crc32c, OfACopyIsThatOfTheBytesAndTheyArrive) {
  std::string source;
  for (unsigned i = 0; i < 14000; ++i) {
    source += static_cast<char>((i * 2654435761U) >> 13U);
  }
  std::string memory;
  for (std::size_t shift = 0; shift < 64; ++shift) {
    for (const std::size_t bytes : {0U, 1U, 7U, 8U, 63U, 64U, 65U, 191U, 767U, 768U, 769U, 6143U,
                                    6144U, 6300U, 7000U, 13000U}) {
      memory.assign(source.size() + 200, '#');
      const std::string_view from = std::string_view(source).substr(shift * 5, bytes);
      std::byte* const to = reinterpret_cast<std::byte*>(memory.data()) + 64 + shift;
      ASSERT_EQ(copy_with_crc32c(to, std::as_bytes(std::span(from)), 77),
                crc32c(std::as_bytes(std::span(from)), 77))
          << bytes;
      ASSERT_EQ(memory.substr(64 + shift, bytes), from) << bytes;
      ASSERT_EQ(memory.find_first_not_of('#'), bytes == 0 ? std::string::npos : 64 + shift);
      ASSERT_EQ(memory.find_first_not_of('#', 64 + shift + bytes), std::string::npos) << bytes;
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
