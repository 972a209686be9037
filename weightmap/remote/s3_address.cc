#include "weightmap/remote/s3_address.h"

#include <algorithm>

#include "weightmap/remote/hub_place.h"

namespace librarian::weightmap::remote {
namespace {

constexpr std::size_t kKeyBytesMax = 1024;
constexpr std::size_t kPrefixBytes = 5;  // "s3://"

bool is_lower_or_digit(char c) { return (c >= 'a' && c <= 'z') || (c >= '0' && c <= '9'); }

bool is_bucket_name(std::string_view name) {
  const bool allowed = std::all_of(name.begin(), name.end(), [](char c) {
    return is_lower_or_digit(c) || c == '-' || c == '.';
  });
  const bool like_an_address = name.find_first_not_of("0123456789.") == std::string_view::npos &&
                               std::count(name.begin(), name.end(), '.') == 3;
  return name.size() >= 3 && name.size() <= 63 && allowed && is_lower_or_digit(name.front()) &&
         is_lower_or_digit(name.back()) && name.find("..") == std::string_view::npos &&
         !like_an_address;
}

// libcurl, as every HTTP client, takes such components out of a path.
bool has_dot_component(std::string_view key) {
  for (std::size_t at = 0; at <= key.size();) {
    const std::size_t end = std::min(key.find('/', at), key.size());
    const std::string_view component = key.substr(at, end - at);
    if (component == "." || component == "..") {
      return true;
    }
    at = end + 1;
  }
  return false;
}

struct Endpoint {
  std::string scheme;
  std::string host;  // With the port, unless it is the scheme's own.
  std::string path;  // Without a slash at its end.
};

Result<Endpoint> parse_endpoint(const std::string& text) {
  const auto uri = parse_uri(text);
  if (!uri || (uri->scheme != "http" && uri->scheme != "https") ||
      uri->text.find('?') != std::string::npos) {
    // The text itself may hold a password.
    return Error(ErrorCode::bad_input,
                 "the S3 endpoint (AWS_ENDPOINT_URL_S3, AWS_ENDPOINT_URL or endpoint_url in "
                 "~/.aws/config) is not a URL such as https://host:9000");
  }
  Endpoint endpoint{uri->scheme, uri->origin().substr(uri->scheme.size() + 3),
                    uri->text.substr(uri->origin().size())};
  while (!endpoint.path.empty() && endpoint.path.back() == '/') {
    endpoint.path.pop_back();
  }
  // libcurl's Host field leaves the usual port out, and the signature covers that field.
  const std::string usual_port = uri->scheme == "http" ? ":80" : ":443";
  if (endpoint.host.size() > usual_port.size() &&
      endpoint.host.compare(endpoint.host.size() - usual_port.size(), usual_port.size(),
                            usual_port) == 0) {
    endpoint.host.resize(endpoint.host.size() - usual_port.size());
  }
  return endpoint;
}

Endpoint aws_endpoint(const std::string& region) {
  const bool china = region.rfind("cn-", 0) == 0;
  return {"https", "s3." + region + (china ? ".amazonaws.com.cn" : ".amazonaws.com"), ""};
}

}  // namespace

Result<Uri> s3_uri(std::string_view rest) {
  const std::size_t slash = std::min(rest.find('/'), rest.size());
  const std::string_view bucket = rest.substr(0, slash);
  const std::string_view key = rest.substr(std::min(rest.size(), slash + 1));
  if (!is_bucket_name(bucket)) {
    return Error(ErrorCode::invalid_argument,
                 "s3:// is followed by what is not a bucket's name (3 to 63 of a-z, 0-9, '-' and "
                 "'.'); give s3://bucket/directory");
  }
  if (key.size() > kKeyBytesMax || has_dot_component(key) ||
      std::any_of(key.begin(), key.end(), [](unsigned char c) { return c < 32 || c == 127; })) {
    return Error(ErrorCode::invalid_argument,
                 "an S3 key longer than 1024 bytes, with a control character, or with a component "
                 "'.' or '..' cannot be asked for; give s3://bucket/directory");
  }
  std::string text = "s3://";
  return Uri{"s3", text.append(bucket).append("/").append(key)};
}

std::string_view s3_bucket(const Uri& uri) {
  const std::string_view rest = std::string_view(uri.text).substr(kPrefixBytes);
  return rest.substr(0, rest.find('/'));
}

std::string_view s3_key(const Uri& uri) {
  return std::string_view(uri.text).substr(kPrefixBytes + s3_bucket(uri).size() + 1);
}

Result<S3Url> s3_url(const Uri& object, const AwsSettings& settings, const std::string& region) {
  if (s3_key(object).empty()) {
    return Error(ErrorCode::invalid_argument, "a bucket is not an object; give s3://bucket/key");
  }
  const bool aws = settings.endpoint_url.empty();
  LIB_TRY(const Endpoint endpoint,
          aws ? Result<Endpoint>(aws_endpoint(region)) : parse_endpoint(settings.endpoint_url));
  const std::string bucket(s3_bucket(object));
  // A certificate for *.s3.region.amazonaws.com covers one component, and most other servers know
  // their own name only.
  const bool in_host = settings.addressing == S3Addressing::host ||
                       (settings.addressing == S3Addressing::automatic && aws &&
                        bucket.find('.') == std::string::npos);
  S3Url address;
  address.host = in_host ? bucket + "." + endpoint.host : endpoint.host;
  address.path =
      endpoint.path + (in_host ? "" : "/" + bucket) + "/" + percent_encode(s3_key(object), "/");
  address.url = {endpoint.scheme, endpoint.scheme + "://" + address.host + address.path};
  return address;
}

bool is_region_name(std::string_view text) {
  return !text.empty() && text.size() <= 32 && std::all_of(text.begin(), text.end(), [](char c) {
    return is_lower_or_digit(c) || (c >= 'A' && c <= 'Z') || c == '-' || c == '_';
  });
}

}  // namespace librarian::weightmap::remote
