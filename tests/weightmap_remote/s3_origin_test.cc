#include "weightmap/remote/s3_origin.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <map>
#include <span>
#include <sstream>

#include "tests/support/memory_file_system.h"

namespace librarian::weightmap::remote {
namespace {

using librarian::testing::MemoryFileSystem;
using ::testing::ElementsAre;
using ::testing::EndsWith;
using ::testing::HasSubstr;
using ::testing::Not;

constexpr const char* kAccessKey = "AKIAIOSFODNN7EXAMPLE";
constexpr const char* kSecretKey = "wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY";
constexpr std::int64_t kNow = 1770091506;  // 2026-02-03T04:05:06Z, a Tuesday.

std::string error_body(const std::string& code, const std::string& more = "") {
  return "<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n<Error><Code>" + code +
         "</Code><Message>Text</Message>" + more + "<RequestId>1</RequestId></Error>";
}

class S3OriginTest : public ::testing::Test {
 protected:
  S3OriginTest() {
    EXPECT_TRUE(make_directories(files_, "/home/me/.aws"));
    environment_["HOME"] = "/home/me";
    environment_["AWS_REGION"] = "eu-west-1";
    origin_ = make_s3_origin(options());
    ask("s3://my-models/model/config.json");
  }

  S3Options options() {
    S3Options options;
    options.environment = [this](const std::string& name) -> std::optional<std::string> {
      const auto found = environment_.find(name);
      return found == environment_.end() ? std::nullopt : std::optional(found->second);
    };
    options.wall_now_s = [this] { return now_s_; };
    options.files = &files_;
    return options;
  }

  void sign() {
    environment_["AWS_ACCESS_KEY_ID"] = kAccessKey;
    environment_["AWS_SECRET_ACCESS_KEY"] = kSecretKey;
  }
  void write_profile(const std::string& access_key, const std::string& secret_key) {
    const std::string text =
        "[default]\naws_access_key_id=" + access_key + "\naws_secret_access_key=" + secret_key;
    ASSERT_TRUE(replace_file(files_, "/home/me/.aws/credentials", text));
  }

  void ask(const std::string& uri) {
    const auto parsed = parse_uri(uri);
    ASSERT_TRUE(parsed) << parsed.error().message();
    request_.uri = *parsed;
    request_.range = {0, 100};
  }

  /// The hop that a request begins with, and the one that answers are given to.
  HttpHop first() {
    auto hop = origin_->first_hop(request_);
    EXPECT_TRUE(hop) << hop.error().message();
    hop_ = hop ? *hop : HttpHop();
    return hop_;
  }

  ResponseVerdict judge(const std::string& text) {
    head_ = ResponseHead();
    std::istringstream lines(text);
    for (std::string line; std::getline(lines, line);) {
      EXPECT_TRUE(head_.add_line(line + "\r\n")) << line;
    }
    EXPECT_TRUE(head_.add_line("\r\n"));
    return origin_->judge({request_, hop_, 0, head_, true});
  }
  /// The next hop after an answer, or why there is none; none of both: the verdict stands.
  Result<std::optional<HttpHop>> after(const std::string& head, const std::string& body) {
    const ResponseVerdict verdict = judge(head);
    return origin_->after({request_, hop_, 0, head_, true}, verdict, body);
  }
  /// Makes the hop that follows the current one. False: there is none.
  bool goes_on(const std::string& head, const std::string& body) {
    auto next = after(head, body);
    if (!next || !*next) {
      return false;
    }
    hop_ = **std::move(next);
    return true;
  }
  Error refusal(const std::string& head, const std::string& body) {
    const ResponseVerdict verdict = judge(head);
    const auto next = origin_->after({request_, hop_, 0, head_, true}, verdict, body);
    EXPECT_FALSE(next && *next) << "asks again";
    Error error = next ? verdict.error.value_or(Error(ErrorCode::internal, "")) : next.error();
    EXPECT_THAT(error.message(), Not(HasSubstr(kSecretKey)));
    EXPECT_THAT(error.message(), Not(HasSubstr(kAccessKey)));
    return error;
  }

  std::string field(const std::string& name) const {
    const auto found =
        std::find_if(hop_.headers.begin(), hop_.headers.end(),
                     [&](const std::string& line) { return line.rfind(name + ": ", 0) == 0; });
    return found == hop_.headers.end() ? "" : found->substr(name.size() + 2);
  }

  MemoryFileSystem files_;
  std::map<std::string, std::string> environment_;
  std::int64_t now_s_ = kNow;
  std::unique_ptr<HttpOrigin> origin_;
  TransferRequest request_;
  HttpHop hop_;
  ResponseHead head_;
};

constexpr const char* kGood206 =
    "HTTP/1.1 206 Partial Content\nETag: \"a\"\nContent-Range: bytes 0-99/1000\n";

// Goal: an object is asked for where its store expects it.
TEST_F(S3OriginTest, AsksAtTheRightAddress) {
  ASSERT_TRUE(replace_file(files_, "/home/me/.aws/config",
                           "[profile virtual]\ns3 =\n  addressing_style = virtual\n"));
  const auto usual = environment_;
  const struct {
    const char* uri;
    std::map<std::string, std::string> variables;
    const char* url;
  } rows[] = {
      {"s3://my-models/a/b", {}, "https://my-models.s3.eu-west-1.amazonaws.com/a/b"},
      {"s3://my-models/a", {{"AWS_REGION", ""}}, "https://my-models.s3.us-east-1.amazonaws.com/a"},
      {"s3://my.models/a", {}, "https://s3.eu-west-1.amazonaws.com/my.models/a"},
      {"s3://my-models/a",
       {{"AWS_REGION", "cn-north-1"}},
       "https://my-models.s3.cn-north-1.amazonaws.com.cn/a"},
      {"s3://my-models/a b+c=d~?e#f%20",
       {},
       "https://my-models.s3.eu-west-1.amazonaws.com/a%20b%2Bc%3Dd~%3Fe%23f%2520"},
      {"s3://my-models/a", {{"AWS_ENDPOINT_URL", "https://h:9000"}}, "https://h:9000/my-models/a"},
      {"s3://my-models/a", {{"AWS_ENDPOINT_URL", "https://h/x/"}}, "https://h/x/my-models/a"},
      {"s3://my-models/a",
       {{"AWS_ENDPOINT_URL", "http://127.0.0.1:80/"}},
       "http://127.0.0.1/my-models/a"},
      {"s3://my-models/a",
       {{"AWS_ENDPOINT_URL", "https://h"}, {"AWS_PROFILE", "virtual"}},
       "https://my-models.h/a"},
  };
  for (const auto& row : rows) {
    environment_ = usual;
    for (const auto& [name, value] : row.variables) {
      environment_[name] = value;
    }
    ask(row.uri);
    origin_ = make_s3_origin(options());
    const HttpHop hop = first();
    EXPECT_EQ(hop.url.text, row.url);
    EXPECT_EQ(hop.url.scheme, hop.url.text.substr(0, hop.url.text.find(':')));
    EXPECT_THAT(hop.headers, ElementsAre("x-amz-checksum-mode: ENABLED"));
    EXPECT_FALSE(hop.redirected);
  }
}

// Goal: what is signed is what is asked for. Method: botocore 1.44.8's signatures of the same.
TEST_F(S3OriginTest, SignsWhatItAsksFor) {
  sign();
  EXPECT_EQ(first().headers.size(), 4U);
  EXPECT_EQ(field("x-amz-date"), "20260203T040506Z");
  EXPECT_EQ(field("x-amz-checksum-mode"), "ENABLED");
  EXPECT_THAT(field("Authorization"),
              EndsWith("3f3d26ea1c83ff1b518d4fd37a1718ac18145afad0909f3051151bb802ff7f27"));
  ask("s3://dotted.bucket/x");
  first();
  EXPECT_THAT(field("Authorization"),
              EndsWith("ad942ecdbd7a57358f33c49592583438892945d4e90f5643a059d9f11a9fa912"));

  environment_["AWS_SESSION_TOKEN"] = "token/with+signs==";
  environment_["AWS_REGION"] = "us-east-1";
  environment_["AWS_ENDPOINT_URL_S3"] = "http://127.0.0.1:5000";
  origin_ = make_s3_origin(options());
  request_.expected = ObjectInfo{1000, "\"a\"", true};
  ask("s3://bucket/a b/model.safetensors");
  EXPECT_EQ(first().if_match, "\"a\"");
  EXPECT_EQ(field("x-amz-security-token"), "token/with+signs==");
  EXPECT_THAT(field("Authorization"),
              EndsWith("065de34d889b9eba5e05e26bcd2e9f823bc2d49e11982130c48e4df6abe6865e"));
}

TEST_F(S3OriginTest, SaysWhyItCannotAsk) {
  const auto why = [this](const std::string& uri, ErrorCode code) {
    ask(uri);
    const auto hop = make_s3_origin(options())->first_hop(request_);
    EXPECT_FALSE(hop) << uri;
    EXPECT_EQ(hop ? ErrorCode::internal : hop.error().code(), code);
    return hop ? "" : hop.error().message();
  };
  EXPECT_THAT(why("s3://my-models", ErrorCode::invalid_argument), HasSubstr("s3://bucket/key"));
  environment_["AWS_REGION"] = "evil.example/";
  EXPECT_THAT(why("s3://my-models/a", ErrorCode::bad_input), HasSubstr("AWS_REGION"));
  environment_["AWS_REGION"] = "";
  for (const char* endpoint : {"store:9000", "file:///x", "https://h/?a", "https://me:SECRET@h/"}) {
    environment_["AWS_ENDPOINT_URL"] = endpoint;
    const std::string text = why("s3://my-models/a", ErrorCode::bad_input);
    EXPECT_THAT(text, HasSubstr("endpoint"));
    EXPECT_THAT(text, Not(HasSubstr("SECRET")));
  }
  environment_["AWS_ENDPOINT_URL"] = "http://store:9000";
  EXPECT_THAT(why("s3://my-models/a", ErrorCode::invalid_argument),
              HasSubstr("http://store:9000: plain http"));
  S3Options insecure = options();
  insecure.insecure_http = true;
  EXPECT_TRUE(S3Origin(insecure).first_hop(request_));
  environment_["AWS_ACCESS_KEY_ID"] = kAccessKey;
  EXPECT_THAT(why("s3://my-models/a", ErrorCode::bad_input), HasSubstr("AWS_SECRET_ACCESS_KEY"));
}

// Goal: only an object's answer gives an object's bytes.
TEST_F(S3OriginTest, TakesNoOtherAnswerForAnObject) {
  first();
  EXPECT_FALSE(judge(kGood206).error);
  EXPECT_EQ(judge(kGood206).info.validator, "\"a\"");
  const struct {
    const char* head;
    ErrorCode code;
  } rows[] = {
      {"HTTP/1.1 200 OK\nContent-Type: application/xml\nContent-Length: 300\n",
       ErrorCode::unavailable},
      {"HTTP/1.1 206 Partial Content\nContent-Range: bytes 0-99/1000\n"
       "Last-Modified: Tue, 03 Feb 2026 04:05:06 GMT\n",
       ErrorCode::unavailable},
      {"HTTP/1.1 301 Moved\nLocation: https://evil.example/\n", ErrorCode::bad_input},
      {"HTTP/1.1 307 Temporary Redirect\nLocation: https://evil.example/\n", ErrorCode::bad_input},
      {"HTTP/1.1 301 Moved\n", ErrorCode::bad_input},
      {"HTTP/1.1 503 Slow Down\n", ErrorCode::unavailable},
      {"HTTP/1.1 412 Precondition Failed\n", ErrorCode::source_changed},
  };
  for (const auto& row : rows) {
    const ResponseVerdict verdict = judge(row.head);
    ASSERT_TRUE(verdict.error) << row.head;
    EXPECT_EQ(verdict.error->code(), row.code) << row.head;
    EXPECT_EQ(verdict.location, "");
  }
  request_.expected = ObjectInfo{1000, "\"a\"", true};
  EXPECT_FALSE(judge(kGood206).error);
  EXPECT_EQ(judge("HTTP/1.1 206 Partial Content\nContent-Range: bytes 0-99/1000\n"
                  "Last-Modified: Tue, 03 Feb 2026 04:05:06 GMT\n")
                .error->code(),
            ErrorCode::unavailable);
}

// Goal: what a store states of whole objects is learned with HEAD, the only place where it does.
TEST_F(S3OriginTest, TakesTheWholeObjectsChecksumsOnly) {
  const std::string head = "HTTP/1.1 200 OK\nContent-Length: 1000\nETag: \"a\"\n";
  const std::string sha256 = "x-amz-checksum-sha256: 47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU=";
  const std::string hex = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";
  const std::string type = "\nx-amz-checksum-type: ";
  int number = 0;
  // What the object is said to be after the answer `text` to HEAD.
  const auto stated = [&](const std::string& text) {
    ask("s3://my-models/model/" + std::to_string(number++) + ".safetensors");
    EXPECT_TRUE(first().head_only);
    EXPECT_TRUE(goes_on(text, ""));
    EXPECT_FALSE(hop_.head_only);
    const ResponseVerdict verdict = judge(kGood206);
    EXPECT_FALSE(verdict.error);
    EXPECT_FALSE(first().head_only) << "asked once";
    return verdict.info;
  };
  EXPECT_EQ(stated(head + sha256).sha256, hex);
  EXPECT_EQ(stated(head + sha256 + type + "FULL_OBJECT").sha256, hex);
  EXPECT_EQ(stated(head + "x-amz-checksum-crc32c: AAAAAQ==").crc, "crc32c:00000001");
  EXPECT_EQ(stated(head + "x-amz-checksum-crc64nvme: AAAAAAAAAAE=").crc,
            "crc64nvme:0000000000000001");
  const std::string others[] = {
      head,
      head + sha256 + type + "COMPOSITE",
      head + sha256 + "-2" + type + "FULL_OBJECT",
      head + sha256.substr(0, sha256.size() - 1) + type + "FULL_OBJECT",
      head + sha256.substr(0, sha256.size() - 1) + " " + type + "FULL_OBJECT",
      // The last letter has two bits that say nothing: they must not be set.
      head + sha256.substr(0, sha256.size() - 2) + "V=" + type + "FULL_OBJECT",
      // Of another version of the object, or of none.
      "HTTP/1.1 200 OK\nContent-Length: 1000\nETag: \"b\"\n" + sha256,
      "HTTP/1.1 200 OK\nContent-Length: 999\nETag: \"a\"\n" + sha256,
      "HTTP/1.1 404 Not Found\nContent-Length: 0\n" + sha256,
      "HTTP/1.1 405 Method Not Allowed\nContent-Length: 0\n",
  };
  for (const std::string& other : others) {
    const ObjectInfo info = stated(other);
    EXPECT_EQ(info.sha256, "") << other;
    EXPECT_EQ(info.crc, "") << other;
    EXPECT_EQ(info.validator, "\"a\"") << other;
  }
}

TEST_F(S3OriginTest, AsksForChecksumsInTheBucketsRegion) {
  ask("s3://my-models/model/model.safetensors");
  EXPECT_TRUE(first().head_only);
  EXPECT_TRUE(goes_on("HTTP/1.1 301 Moved Permanently\nx-amz-bucket-region: us-west-2\n", ""));
  EXPECT_TRUE(hop_.head_only);
  EXPECT_THAT(hop_.url.text, HasSubstr("us-west-2"));
}

// Goal: a bucket in another region is found there, once, and never outside of AWS.
TEST_F(S3OriginTest, AsksAgainInTheBucketsRegion) {
  const struct {
    const char* head;
    std::string body;
  } rows[] = {
      {"HTTP/1.1 301 Moved\nx-amz-bucket-region: ap-south-1\n", error_body("PermanentRedirect")},
      {"HTTP/1.1 307 Moved\nx-amz-bucket-region: ap-south-1\nLocation: https://evil.example/\n",
       ""},
      {"HTTP/1.1 400 Bad Request\nx-amz-bucket-region: ap-south-1\n", ""},
      {"HTTP/1.1 400 Bad Request\n",
       error_body("AuthorizationHeaderMalformed", "<Region>ap-south-1</Region>")},
  };
  for (const bool anonymous : {true, false}) {
    if (!anonymous) {
      sign();
    }
    for (const auto& row : rows) {
      origin_ = make_s3_origin(options());
      first();
      const HttpHop before = hop_;
      ASSERT_TRUE(goes_on(row.head, row.body)) << row.head;
      EXPECT_EQ(hop_.url.text, "https://my-models.s3.ap-south-1.amazonaws.com/model/config.json");
      EXPECT_EQ(field("Authorization").empty(), anonymous);
      if (!anonymous) {
        EXPECT_THAT(field("Authorization"), HasSubstr("/ap-south-1/s3/"));
      }
      EXPECT_FALSE(goes_on(row.head, row.body)) << "the same answer again";
      EXPECT_FALSE(goes_on("HTTP/1.1 301 Moved\nx-amz-bucket-region: us-west-2\n", ""));
      // Another request was under way when this one learned the region; later ones know it.
      hop_ = before;
      EXPECT_TRUE(goes_on(row.head, row.body));
      EXPECT_THAT(first().url.text, HasSubstr("ap-south-1"));
      ask("s3://other-bucket/x");
      EXPECT_THAT(first().url.text, HasSubstr("eu-west-1"));
      ask("s3://my-models/model/config.json");
    }
  }
}

TEST_F(S3OriginTest, GoesNowhereThatIsNoRegion) {
  first();
  for (const char* region : {"evil.example/", "a@evil", "", "eu-west-1"}) {
    const Error error = refusal("HTTP/1.1 301 Moved\nx-amz-bucket-region: " + std::string(region) +
                                    "\nLocation: https://evil.example/\n",
                                error_body("PermanentRedirect", "<Region>evil.example/</Region>"));
    EXPECT_EQ(error.code(), ErrorCode::bad_input);
    EXPECT_THAT(error.message(), HasSubstr("AWS_REGION"));
  }
  // A store of one's own has one address; only the signature may change.
  environment_["AWS_ENDPOINT_URL"] = "https://store";
  origin_ = make_s3_origin(options());
  first();
  EXPECT_FALSE(goes_on("HTTP/1.1 301 Moved\nx-amz-bucket-region: us-west-2\n", ""));
  sign();
  origin_ = make_s3_origin(options());
  first();
  EXPECT_TRUE(goes_on("HTTP/1.1 301 Moved\nx-amz-bucket-region: us-west-2\n", ""));
  EXPECT_EQ(hop_.url.text, "https://store/my-models/model/config.json");
  EXPECT_THAT(field("Authorization"), HasSubstr("/us-west-2/s3/"));
}

// Goal: a wrong clock costs one more request, and not one for ever.
TEST_F(S3OriginTest, SignsForTheServersTime) {
  sign();
  first();
  const std::string body = error_body("RequestTimeTooSkewed");
  const std::string head = "HTTP/1.1 403 Forbidden\nDate: Tue, 03 Feb 2026 06:05:06 GMT\n";
  ASSERT_TRUE(goes_on(head, body));
  EXPECT_EQ(field("x-amz-date"), "20260203T060506Z");
  now_s_ += 60;
  EXPECT_THAT(refusal(head, body).message(), HasSubstr("set the clock"));
  first();
  EXPECT_EQ(field("x-amz-date"), "20260203T060606Z");
  for (const char* date : {"", "Date: soon\n", "Date: Tue, 03 Feb 1970 06:05:06 GMT\n",
                           "Date: Tue, 03 Feb 2970 06:05:06 GMT\n"}) {
    EXPECT_EQ(refusal("HTTP/1.1 403 Forbidden\n" + std::string(date), body).code(),
              ErrorCode::bad_input);
  }
}

// Goal: credentials that were renewed in their file while a job runs do not end it.
TEST_F(S3OriginTest, ReadsTheCredentialsAnew) {
  for (const char* code : {"ExpiredToken", "InvalidAccessKeyId", "SignatureDoesNotMatch"}) {
    write_profile("OLD", "old");
    origin_ = make_s3_origin(options());
    first();
    const HttpHop before = hop_;
    const std::string head = "HTTP/1.1 403 Forbidden\n";
    EXPECT_EQ(refusal(head, error_body(code)).code(), ErrorCode::bad_input);
    write_profile("OLD", "new");  // Also where the name stays.
    ASSERT_TRUE(goes_on(head, error_body(code))) << code;
    EXPECT_FALSE(goes_on(head, error_body(code))) << code;
    hop_ = before;  // A second request that was under way.
    EXPECT_TRUE(goes_on(head, error_body(code))) << code;
    write_profile("NEW", "new");
    ASSERT_TRUE(goes_on(head, error_body(code))) << code;
    EXPECT_THAT(field("Authorization"), HasSubstr("Credential=NEW/"));
    const std::string text = refusal(head, error_body(code)).message();
    EXPECT_THAT(text, HasSubstr(code));
    EXPECT_THAT(text, HasSubstr("profile 'default'"));
  }
}

// Goal: every refusal says what it is and what to do, with a code that fits.
TEST_F(S3OriginTest, ExplainsRefusals) {
  const struct {
    int status;
    const char* code;
    ErrorCode means;
    const char* anonymous;
    const char* signing;
  } rows[] = {
      {403, "AccessDenied", ErrorCode::bad_input, "without credentials",
       "by the environment's credentials"},
      {403, "", ErrorCode::bad_input, "without credentials", "by the environment's credentials"},
      {403, "InvalidObjectState", ErrorCode::bad_input, "restore", "restore"},
      {400, "ExpiredToken", ErrorCode::bad_input, "expired", "expired"},
      {400, "InvalidToken", ErrorCode::bad_input, "access key of", "access key of"},
      {403, "SignatureDoesNotMatch", ErrorCode::bad_input, "secret access key", "is wrong"},
      {404, "NoSuchBucket", ErrorCode::bad_input, "no such bucket", "no such bucket"},
      {404, "NoSuchKey", ErrorCode::not_found, "no such object", "no such object"},
      {404, "", ErrorCode::not_found, "no such object", "no such object"},
      {400, "InvalidArgument", ErrorCode::bad_input, "refuses", "refuses"},
      {400, "RequestTimeout", ErrorCode::unavailable, "RequestTimeout", "RequestTimeout"},
      {403, "RequestThrottled", ErrorCode::unavailable, "Throttled", "Throttled"},
      {500, "InternalError", ErrorCode::unavailable, "InternalError", "InternalError"},
      {503, "SlowDown", ErrorCode::unavailable, "SlowDown", "SlowDown"},
      {502, "", ErrorCode::unavailable, "502", "502"},
      {412, "PreconditionFailed", ErrorCode::source_changed, "replaced", "replaced"},
      {416, "InvalidRange", ErrorCode::unavailable, "416", "416"},
  };
  for (const bool anonymous : {true, false}) {
    if (!anonymous) {
      sign();
    }
    origin_ = make_s3_origin(options());
    first();
    for (const auto& row : rows) {
      const Error error = refusal("HTTP/1.1 " + std::to_string(row.status) + " X\n",
                                  *row.code == '\0' ? "" : error_body(row.code));
      EXPECT_EQ(error.code(), row.means) << row.status << row.code;
      EXPECT_THAT(error.message(), HasSubstr(anonymous ? row.anonymous : row.signing));
    }
  }
}

}  // namespace
}  // namespace librarian::weightmap::remote
