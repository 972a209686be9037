#include "weightmap/remote/aws_signature.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "weightmap/remote/hub_place.h"

namespace librarian::weightmap::remote {
namespace {

using ::testing::Contains;
using ::testing::ElementsAre;
using ::testing::EndsWith;
using ::testing::HasSubstr;
using ::testing::Not;

constexpr const char* kEmptyHash =
    "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

// Goal: signatures are those that AWS computes.
// Method: the examples in "Authenticating Requests: Using the Authorization Header" of the S3 API
// reference, for GET Object, GET Bucket Lifecycle and GET Bucket (List Objects).
TEST(AwsSignature, GivesWhatTheS3ReferencePublishes) {
  const AwsCredentials credentials = {"AKIAIOSFODNN7EXAMPLE",
                                      "wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY", ""};
  const AwsScope scope = {.region = "us-east-1", .time_s = 1369353600};
  AwsRequest request = {.host = "examplebucket.s3.amazonaws.com", .path = "/test.txt"};
  request.headers = {{"range", "bytes=0-9"}};
  EXPECT_THAT(sign_request(request, credentials, scope),
              ElementsAre("x-amz-date: 20130524T000000Z",
                          std::string("x-amz-content-sha256: ") + kEmptyHash,
                          "Authorization: AWS4-HMAC-SHA256 "
                          "Credential=AKIAIOSFODNN7EXAMPLE/20130524/us-east-1/s3/aws4_request, "
                          "SignedHeaders=host;range;x-amz-content-sha256;x-amz-date, Signature="
                          "f0e8bdb87c964420e857bd35b5d6ed310bd44f0170aba48dd91039c6036bdb41"));

  request = {.host = "examplebucket.s3.amazonaws.com", .path = "/", .query = "lifecycle"};
  EXPECT_THAT(sign_request(request, credentials, scope).back(),
              EndsWith("fea454ca298b7da1c68078a5d1bdbfbbe0d65c699e0f91ac7a200a0136783543"));
  request.query = "prefix=J&max-keys=2";
  EXPECT_THAT(sign_request(request, credentials, scope).back(),
              EndsWith("34b48302e7b5fa45bde8084f4b7868a86f0a534bc59db6670ed5711ef69dc6f7"));
}

// Method: get-vanilla and get-vanilla-query-order-key-case of the published SigV4 test suite, whose
// service is not S3 and has no x-amz-content-sha256.
TEST(AwsSignature, GivesWhatTheTestSuitePublishes) {
  const AwsCredentials credentials = {"AKIDEXAMPLE", "wJalrXUtnFEMI/K7MDENG+bPxRfiCYEXAMPLEKEY",
                                      ""};
  const AwsScope scope = {.region = "us-east-1", .service = "service", .time_s = 1440938160};
  AwsRequest request = {.host = "example.amazonaws.com", .path = "/"};
  EXPECT_THAT(sign_request(request, credentials, scope),
              ElementsAre("x-amz-date: 20150830T123600Z",
                          EndsWith("SignedHeaders=host;x-amz-date, Signature=5fa00fa31553b73ebf1942"
                                   "676e86291e8372ff2a2260956d9b8aae1d763fbf31")));
  request.query = "Param2=value2&Param1=value1";
  EXPECT_THAT(sign_request(request, credentials, scope).back(),
              EndsWith("b97d918cfa904a5beff61c982a1b6f458b799221646efd99d3219ec94cdf2500"));
}

// Goal: keys that need encoding are signed as servers see them.
// Method: what botocore 1.44.8 (S3SigV4Auth) signs for 2026-02-03T04:05:06Z.
TEST(AwsSignature, AgreesWithBotocoreOnOddKeys) {
  const AwsCredentials credentials = {"AKIAIOSFODNN7EXAMPLE",
                                      "wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY", ""};
  const AwsScope scope = {.region = "eu-west-1", .time_s = 1770091506};
  const struct {
    const char* key;
    const char* path;
    const char* signature;
  } rows[] = {
      {"model/config.json", "/model/config.json",
       "3f3d26ea1c83ff1b518d4fd37a1718ac18145afad0909f3051151bb802ff7f27"},
      {"a b/c+d=e", "/a%20b/c%2Bd%3De",
       "8b5ad81de9b9d1a737afe470a0f9de01da888dc843e20ea2ba0269195cd7c99f"},
      {"\xC3\xBC"
       "bung/\xE6\xA8\xA1\xE5\x9E\x8B.safetensors",
       "/%C3%BCbung/%E6%A8%A1%E5%9E%8B.safetensors",
       "687258ba6f90197337bd066fa985e0ebe91c569cfac402f9539da808c271ec59"},
      {"~x!*'()/&$@:,;?#[]", "/~x%21%2A%27%28%29/%26%24%40%3A%2C%3B%3F%23%5B%5D",
       "9d3747f9fd7aef40b556ff0991708432d5e4399c695277f77b3d2ca8545a89ba"},
      {"a%20b", "/a%2520b", "678a73852d7a59ae5c7b1275e98ae38bb1751f83184e46b2bfed79c131153d2b"},
      {"a//b", "/a//b", "ecbca53727949c27a80a9f7c0753093d7648e48263282c1e146b715988af78e7"},
  };
  for (const auto& row : rows) {
    const std::string path = "/" + percent_encode(row.key, "/");
    EXPECT_EQ(path, row.path);
    AwsRequest request = {.host = "my-models.s3.eu-west-1.amazonaws.com", .path = path};
    request.headers = {{"x-amz-checksum-mode", "ENABLED"}};
    EXPECT_THAT(sign_request(request, credentials, scope).back(), EndsWith(row.signature))
        << row.key;
  }
}

// Method: as above, over a port of its own and with temporary credentials.
TEST(AwsSignature, SignsTheSessionTokenAndThePort) {
  const AwsCredentials credentials = {
      "AKIAIOSFODNN7EXAMPLE", "wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY", "token/with+signs=="};
  AwsRequest request = {.host = "127.0.0.1:5000", .path = "/bucket/a%20b/model.safetensors"};
  request.headers = {{"x-amz-checksum-mode", "ENABLED"}};
  const auto lines =
      sign_request(request, credentials, {.region = "us-east-1", .time_s = 1770091506});
  EXPECT_THAT(lines, Contains("x-amz-security-token: token/with+signs=="));
  EXPECT_THAT(lines.back(), EndsWith("SignedHeaders=host;x-amz-checksum-mode;x-amz-content-sha256;"
                                     "x-amz-date;x-amz-security-token, Signature=065de34d889b9eba5e"
                                     "05e26bcd2e9f823bc2d49e11982130c48e4df6abe6865e"));
  for (const std::string& line : lines) {
    EXPECT_THAT(line, Not(HasSubstr(credentials.secret_key)));
  }
}

}  // namespace
}  // namespace librarian::weightmap::remote
