#pragma once
/// Signs requests to S3 and to stores that speak its protocol. Pure functions: no I/O, no clock.
/// @source AWS Signature Version 4, "Create a signed AWS API request" in the AWS IAM user guide.

#include <cstdint>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace librarian::weightmap::remote {

/// Who asks. A secret as a whole: it goes into no log, error or report.
struct AwsCredentials {
  std::string access_key;     ///< Sent; names the secret.
  std::string secret_key;     ///< Never sent.
  std::string session_token;  ///< Sent with temporary credentials; else empty.
  bool operator==(const AwsCredentials&) const = default;
};

/// A request without a body, as it goes over the wire.
struct AwsRequest {
  std::string_view method = "GET";
  std::string_view host;  ///< As in the Host field: with the port unless it is the scheme's own.
  std::string_view path;  ///< From the first '/', percent-encoded once.
  std::string_view query = {};  ///< Percent-encoded, in any order, without '?'; may be empty.
  /// Further fields to sign: names in lower case, values trimmed. They are sent by the caller.
  std::vector<std::pair<std::string, std::string>> headers = {};
};

/// What a signature is good for.
struct AwsScope {
  std::string_view region;
  std::string_view service = "s3";
  std::int64_t time_s = 0;  ///< Unix time. Servers accept 15 minutes to either side of their own.
};

/// The fields to send beside Host and `request.headers`, as "name: value".
std::vector<std::string> sign_request(const AwsRequest& request, const AwsCredentials& credentials,
                                      const AwsScope& scope);

}  // namespace librarian::weightmap::remote
