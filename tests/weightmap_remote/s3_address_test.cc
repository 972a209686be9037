#include "weightmap/remote/s3_address.h"

#include <gtest/gtest.h>

#include <string>

#include "weightmap/remote/s3_error.h"

namespace librarian::weightmap::remote {
namespace {

std::string error_body(const std::string& code) {
  return "<?xml version=\"1.0\"?>\n<Error><Code>" + code +
         "</Code><Region>eu-west-1</Region></Error>";
}

// Goal: only what is a bucket's name becomes part of a host, and a key is kept as it is.
TEST(S3Address, KnowsBucketsAndKeys) {
  for (const char* text : {"abc", "my-models", "a.b.c", "1.2.3.4x", "x3--alias-s3alias"}) {
    EXPECT_TRUE(s3_uri(text)) << text;
  }
  for (const std::string& text :
       {std::string(), std::string("ab"), std::string(64, 'a'), std::string("Abc"),
        std::string("a_b"), std::string("-abc"), std::string("abc-"), std::string("a..b"),
        std::string("1.2.3.4"), std::string("abc?x"), std::string("me:pw@abc/x"),
        std::string("abc:9000/x"), std::string("abc/a\nb"), std::string("abc/../b"),
        std::string("abc/a/."), "abc/" + std::string(1025, 'a')}) {
    const auto uri = s3_uri(text);
    ASSERT_FALSE(uri) << text;
    EXPECT_EQ(uri.error().code(), ErrorCode::invalid_argument);
  }
  const Uri uri = *s3_uri("abc/d/e");
  EXPECT_EQ(s3_bucket(uri), "abc");
  EXPECT_EQ(s3_key(uri), "d/e");
  EXPECT_EQ(s3_key(*s3_uri("abc")), "");
  EXPECT_EQ(s3_key(*s3_uri("abc//x")), "/x");
}

// Goal: a message gets a short plain word of an error's body, or nothing of it.
TEST(S3Error, IsReadFromTheBodyWithCare) {
  EXPECT_EQ(parse_s3_error(error_body("NoSuchKey")).code, "NoSuchKey");
  EXPECT_EQ(parse_s3_error(error_body("X")).region, "eu-west-1");
  const std::string others[] = {"",
                                "<Code>NoSuchKey</Code>",
                                "<Error><Code>NoSuchKey",
                                "<Error><Code></Code>",
                                error_body("No such\nkey"),
                                error_body("\x1b[31m"),
                                error_body(std::string(65, 'a')),
                                std::string(4096, ' ') + error_body("NoSuchKey")};
  for (const std::string& other : others) {
    EXPECT_EQ(parse_s3_error(other).code, "") << other;
  }
}

}  // namespace
}  // namespace librarian::weightmap::remote
