#include <gtest/gtest.h>

#include "weightmap/remote/transport.h"
#include "weightmap/remote/uri_parts.h"

namespace librarian::weightmap::remote {
namespace {

// Goal: every place is brought to one form. Method: a table of texts and what becomes of them.
TEST(Uri, ParsesPlaces) {
  const struct {
    const char* text;
    Uri uri;
  } rows[] = {
      {"/models/llama", {"file", "/models/llama"}},
      {"models/llama", {"file", "models/llama"}},
      {"org/name://odd", {"file", "org/name://odd"}},
      {"file:///models/my%20llama", {"file", "/models/my llama"}},
      {"FILE://localhost/models", {"file", "/models"}},
      {"https://Host/dir/", {"https", "https://Host/dir/"}},
      {"HTTPS://host/a/../b", {"https", "https://host/b"}},
      {"https://host", {"https", "https://host/"}},
      {"https://host/x#part", {"https", "https://host/x"}},
      {"https://host:8443/x?a=b", {"https", "https://host:8443/x?a=b"}},
      {"http://127.0.0.1:80/a b", {"http", "http://127.0.0.1:80/a%20b"}},
      {"s3://my-models", {"s3", "s3://my-models/"}},
      {"S3://my-models/a b/c?d#e%20", {"s3", "s3://my-models/a b/c?d#e%20"}},
  };
  for (const auto& row : rows) {
    const auto uri = parse_uri(row.text);
    ASSERT_TRUE(uri) << row.text << ": " << uri.error().message();
    EXPECT_EQ(uri->scheme, row.uri.scheme) << row.text;
    EXPECT_EQ(uri->text, row.uri.text) << row.text;
  }
}

TEST(Uri, RefusesWhatItCannotReadOrMustNot) {
  const std::string rows[] = {
      "",
      "https://",
      "https:///x",
      "ftp://host/x",
      "gopher://host/x",
      "https://user:secret@host/x",
      "https://user@host/x",
      "https://host:99999/x",
      "https://ho st/x",
      std::string("https://host/x\r\nHost: evil"),
      std::string("/models\0/x", 10),
      "file://otherhost/x",
      "file://",
      "file:///x%zz",
      "file:///x%00",
      "s3://Bucket/x",
      "s3://user:secret@bucket/x",
      "s3://bucket/a/../b",
      "https://host/" + std::string(9000, 'a'),
  };
  for (const std::string& row : rows) {
    const auto uri = parse_uri(row);
    ASSERT_FALSE(uri) << row << " became " << uri->text;
    EXPECT_EQ(uri.error().code(), ErrorCode::invalid_argument) << row;
    EXPECT_EQ(uri.error().message().find("secret"), std::string::npos);
  }
}

TEST(Uri, ChildrenAreOneComponentDeeperAndEncoded) {
  EXPECT_EQ(parse_uri("/m")->child("a b").text, "/m/a b");
  EXPECT_EQ(parse_uri("/m/")->child("a").text, "/m/a");
  EXPECT_EQ(parse_uri("https://h/m")->child("a b").text, "https://h/m/a%20b");
  EXPECT_EQ(parse_uri("https://h/m/?sig=1")->child("x?y").text, "https://h/m/x%3Fy?sig=1");
  EXPECT_EQ(parse_uri("https://h")->child("x").text, "https://h/x");
  EXPECT_EQ(parse_uri("s3://bucket")->child("a b?").text, "s3://bucket/a b?");
  EXPECT_EQ(parse_uri("s3://bucket/m")->child("x").text, "s3://bucket/m/x");
  EXPECT_DEATH(parse_uri("/m")->child("../x"), "name");
}

// Goal: messages never carry a signature.
TEST(Uri, DisplayDropsTheQuery) {
  EXPECT_EQ(parse_uri("https://h:1/m?X-Amz-Signature=1")->display(), "https://h:1/m");
  EXPECT_EQ(parse_uri("/dir/a?b")->display(), "/dir/a?b");
  EXPECT_EQ(parse_uri("https://h:1/m?x")->origin(), "https://h:1");
  EXPECT_EQ(parse_uri("s3://bucket/a?b")->display(), "s3://bucket/a?b");
  EXPECT_EQ(parse_uri("s3://bucket/a?b")->origin(), "s3://bucket");
}

// Goal: plain http only where nobody is on the way, or where the user says so.
TEST(Uri, PlainHttpNeedsLoopbackOrPermission) {
  for (const char* text :
       {"https://host/x", "/x", "s3://bucket/x", "http://127.0.0.1/x", "http://127.8.9.1:81/x",
        "http://localhost/x", "http://LOCALHOST:1/x", "http://[::1]:1/x"}) {
    EXPECT_TRUE(check_allowed(*parse_uri(text), false)) << text;
  }
  for (const char* text : {"http://host/x", "http://127.evil.example/x", "http://10.0.0.1/x",
                           "http://localhost.evil.example/x", "http://[::2]/x"}) {
    const auto allowed = check_allowed(*parse_uri(text), false);
    ASSERT_FALSE(allowed) << text;
    EXPECT_EQ(allowed.error().code(), ErrorCode::invalid_argument);
    EXPECT_NE(allowed.error().message().find("--insecure-http"), std::string::npos);
    EXPECT_TRUE(check_allowed(*parse_uri(text), true)) << text;
  }
}

// Goal: a redirect leads to http or https only and never to less protection.
TEST(Uri, RedirectsAreResolvedAndChecked) {
  const Uri base = *parse_uri("https://host/a/b?c");
  EXPECT_EQ(resolve_location(base, "d")->text, "https://host/a/d");
  EXPECT_EQ(resolve_location(base, "/d")->text, "https://host/d");
  EXPECT_EQ(resolve_location(base, "//cdn/d")->text, "https://cdn/d");
  EXPECT_EQ(resolve_location(base, "https://cdn/d?sig")->text, "https://cdn/d?sig");
  EXPECT_EQ(resolve_location(*parse_uri("http://h/a"), "https://h/a")->text, "https://h/a");
  const std::string refused[] = {
      "http://host/a",         "file:///etc/passwd", "ftp://host/x", "",
      "https://user:pw@host/", "gopher://h/",        "/a\r\nX: y",   std::string(9000, 'a')};
  for (const std::string& location : refused) {
    const auto target = resolve_location(base, location);
    ASSERT_FALSE(target) << location << " became " << target->text;
    EXPECT_EQ(target.error().code(), ErrorCode::bad_input);
  }
}

}  // namespace
}  // namespace librarian::weightmap::remote
