#include "weightmap/remote/s3_error.h"

#include <algorithm>
#include <array>

namespace librarian::weightmap::remote {
namespace {

constexpr std::size_t kBodyBytesMax = 4096;
constexpr std::size_t kTextBytesMax = 64;

bool is_plain(char c) {
  return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') || c == '-' ||
         c == '.' || c == '_';
}

std::string text_of(std::string_view body, std::string_view element) {
  const std::string open = "<" + std::string(element) + ">";
  const std::size_t at = body.find(open);
  if (at == std::string_view::npos) {
    return "";
  }
  body.remove_prefix(at + open.size());
  const std::size_t end = body.find("</" + std::string(element) + ">");
  if (end == std::string_view::npos || end > kTextBytesMax ||
      !std::all_of(body.begin(), body.begin() + static_cast<std::ptrdiff_t>(end), is_plain)) {
    return "";
  }
  return std::string(body.substr(0, end));
}

}  // namespace

S3Error parse_s3_error(std::string_view body) {
  body = body.substr(0, kBodyBytesMax);
  const std::size_t root = body.find("<Error>");
  if (root == std::string_view::npos) {
    return {};
  }
  body.remove_prefix(root);
  return {text_of(body, "Code"), text_of(body, "Region")};
}

bool is_passing_s3_error(std::string_view code) {
  constexpr std::array<std::string_view, 9> kCodes = {
      "SlowDown",       "InternalError",       "ServiceUnavailable",
      "RequestTimeout", "RequestThrottled",    "BandwidthLimitExceeded",
      "Throttling",     "ThrottlingException", "PriorRequestNotComplete"};
  return std::find(kCodes.begin(), kCodes.end(), code) != kCodes.end();
}

}  // namespace librarian::weightmap::remote
