#include "weightmap/remote/aws_signature.h"

#include <openssl/evp.h>
#include <openssl/hmac.h>

#include <algorithm>
#include <array>
#include <cctype>
#include <ctime>

#include "base/digest.h"
#include "base/error.h"
#include "base/text.h"

namespace librarian::weightmap::remote {
namespace {

constexpr std::string_view kAlgorithm = "AWS4-HMAC-SHA256";

std::string hmac_sha256(std::string_view key, std::string_view text) {
  std::array<unsigned char, EVP_MAX_MD_SIZE> mac{};
  unsigned int mac_bytes = 0;
  LIB_CHECK(HMAC(EVP_sha256(), key.data(), static_cast<int>(key.size()),
                 reinterpret_cast<const unsigned char*>(text.data()), text.size(), mac.data(),
                 &mac_bytes) != nullptr);
  return {reinterpret_cast<const char*>(mac.data()), mac_bytes};
}

// "20130524T000000Z"
std::string iso_time(std::int64_t time_s) {
  const auto seconds = static_cast<std::time_t>(time_s);
  std::tm utc{};
  LIB_CHECK(gmtime_r(&seconds, &utc) != nullptr);
  std::array<char, 32> text{};
  return {text.data(), std::strftime(text.data(), text.size(), "%Y%m%dT%H%M%SZ", &utc)};
}

// Parameters in the order of their encoded names, each with a '='.
std::string canonical_query(std::string_view query) {
  std::vector<std::pair<std::string_view, std::string_view>> parameters;
  while (!query.empty()) {
    const std::string_view one = query.substr(0, query.find('&'));
    query.remove_prefix(std::min(query.size(), one.size() + 1));
    const std::size_t equals = one.find('=');
    parameters.emplace_back(one.substr(0, equals), equals == std::string_view::npos
                                                       ? std::string_view()
                                                       : one.substr(equals + 1));
  }
  std::sort(parameters.begin(), parameters.end());
  std::string text;
  for (const auto& [name, value] : parameters) {
    text.append(text.empty() ? "" : "&").append(name).append("=").append(value);
  }
  return text;
}

}  // namespace

std::vector<std::string> sign_request(const AwsRequest& request, const AwsCredentials& credentials,
                                      const AwsScope& scope) {
  const std::string body_hash = sha256_hex("");
  const std::string time = iso_time(scope.time_s);
  std::vector<std::pair<std::string, std::string>> sent = {{"x-amz-date", time}};
  if (scope.service == "s3") {
    sent.emplace_back("x-amz-content-sha256", body_hash);
  }
  if (!credentials.session_token.empty()) {
    sent.emplace_back("x-amz-security-token", credentials.session_token);
  }
  auto fields = request.headers;
  fields.insert(fields.end(), sent.begin(), sent.end());
  fields.emplace_back("host", request.host);
  std::sort(fields.begin(), fields.end());
  std::string canonical_fields;
  std::string names;
  for (const auto& [name, value] : fields) {
    canonical_fields.append(name).append(":").append(value).append("\n");
    names.append(names.empty() ? "" : ";").append(name);
  }

  const std::string query = canonical_query(request.query);
  std::string canonical(request.method);
  for (const std::string_view part :
       {request.path, std::string_view(query), std::string_view(canonical_fields),
        std::string_view(names), std::string_view(body_hash)}) {
    canonical.append("\n").append(part);
  }
  const std::string date = time.substr(0, 8);
  std::string where = date;
  where.append("/").append(scope.region).append("/").append(scope.service).append("/aws4_request");
  std::string key = hmac_sha256("AWS4" + credentials.secret_key, date);
  for (const std::string_view part :
       {scope.region, scope.service, std::string_view("aws4_request")}) {
    key = hmac_sha256(key, part);
  }
  std::string text(kAlgorithm);
  text.append("\n").append(time).append("\n").append(where).append("\n").append(
      sha256_hex(canonical));
  std::string authorization = "Authorization: ";
  const std::string signature = hmac_sha256(key, text);
  authorization.append(kAlgorithm)
      .append(" Credential=")
      .append(credentials.access_key)
      .append("/")
      .append(where)
      .append(", SignedHeaders=")
      .append(names)
      .append(", Signature=")
      .append(hex(std::as_bytes(std::span(signature))));

  std::vector<std::string> lines;
  lines.reserve(sent.size() + 1);
  for (const auto& [name, value] : sent) {
    lines.push_back(name + ": " + value);
  }
  lines.push_back(std::move(authorization));
  return lines;
}

}  // namespace librarian::weightmap::remote
