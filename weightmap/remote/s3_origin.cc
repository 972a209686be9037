#include "weightmap/remote/s3_origin.h"

#include <curl/curl.h>
#include <openssl/evp.h>

#include <algorithm>
#include <array>
#include <cstdlib>
#include <ctime>

#include "base/log.h"
#include "base/text.h"
#include "weightmap/remote/s3_address.h"

namespace librarian::weightmap::remote {
namespace {

constexpr std::string_view kWeightFileEnding = ".safetensors";
constexpr const char* kDefaultRegion = "us-east-1";
// Servers refuse from 15 minutes on; less than this explains no refusal.
constexpr std::int64_t kHarmlessSkewSeconds = 300;
constexpr std::int64_t kYear2000Seconds = 946684800;
constexpr std::int64_t kYear2100Seconds = 4102444800;

bool is_redirect(int status) {
  return status == 301 || status == 302 || status == 303 || status == 307 || status == 308;
}

bool is_about_credentials(std::string_view code) {
  constexpr std::array<std::string_view, 6> kCodes = {
      "ExpiredToken",       "TokenRefreshRequired", "InvalidToken",
      "InvalidAccessKeyId", "InvalidClientTokenId", "SignatureDoesNotMatch"};
  return std::find(kCodes.begin(), kCodes.end(), code) != kCodes.end();
}

std::string status_text(int status, const std::string& code) {
  return "HTTP " + std::to_string(status) + (code.empty() ? "" : " " + code);
}

// The time for which a hop was signed; 0 if it was not.
std::int64_t signed_at_s(const HttpHop& hop) {
  constexpr std::string_view kName = "x-amz-date: ";
  for (const std::string& line : hop.headers) {
    std::tm utc{};
    if (line.rfind(kName, 0) == 0 &&
        strptime(line.c_str() + kName.size(), "%Y%m%dT%H%M%SZ", &utc) != nullptr) {
      return timegm(&utc);
    }
  }
  return 0;
}

// Base64 of `bytes` bytes as lower-case hex; empty for anything else.
std::string hex_of_base64(const std::string& text, std::size_t bytes) {
  constexpr std::size_t kBytesMax = 48;
  std::array<unsigned char, kBytesMax> decoded{};
  std::array<unsigned char, 2 * kBytesMax> back{};
  const std::size_t text_bytes = (bytes + 2) / 3 * 4;
  // OpenSSL takes spaces and other odd forms as well: only the one true form encodes to itself.
  if (text.size() != text_bytes ||
      EVP_DecodeBlock(decoded.data(), reinterpret_cast<const unsigned char*>(text.data()),
                      static_cast<int>(text_bytes)) < static_cast<int>(bytes) ||
      EVP_EncodeBlock(back.data(), decoded.data(), static_cast<int>(bytes)) !=
          static_cast<int>(text_bytes) ||
      !std::equal(text.begin(), text.end(), back.begin())) {
    return "";
  }
  return hex(std::as_bytes(std::span(decoded)).first(bytes));
}

}  // namespace

std::unique_ptr<HttpOrigin> make_s3_origin(S3Options options) {
  return std::make_unique<S3Origin>(std::move(options));
}

Result<HttpHop> S3Origin::first_hop(const TransferRequest& request) {
  if (!settings_) {
    LIB_TRY(settings_, read_aws_settings(options_.environment, *options_.files));
  }
  const bool may_state = request.uri.text.ends_with(kWeightFileEnding);
  const bool head_only = !request.expected && may_state && !stated_.contains(request.uri.text);
  return hop_at(request, signing_time_s(), head_only);
}

Result<HttpHop> S3Origin::hop_at(const TransferRequest& request, std::int64_t time_s,
                                 bool head_only) const {
  const auto learned = region_of_bucket_.find(s3_bucket(request.uri));
  const std::string region = learned != region_of_bucket_.end() ? learned->second
                             : settings_->region.empty()        ? kDefaultRegion
                                                                : settings_->region;
  if (!is_region_name(region)) {
    return Error(ErrorCode::bad_input,
                 "AWS_REGION, or `region` in ~/.aws/config, is not a region's name");
  }
  LIB_TRY(const S3Url address, s3_url(request.uri, *settings_, region));
  if (auto allowed = check_allowed(address.url, options_.insecure_http); !allowed) {
    return allowed.error().with_context("the S3 endpoint " + address.url.origin());
  }
  AwsRequest asked = {.host = address.host, .path = address.path};
  asked.method = head_only ? "HEAD" : "GET";
  asked.headers = {{"x-amz-checksum-mode", "ENABLED"}};
  HttpHop hop;
  if (settings_->credentials) {
    hop.headers =
        sign_request(asked, *settings_->credentials, {.region = region, .time_s = time_s});
  }
  for (const auto& [name, value] : asked.headers) {
    hop.headers.push_back(name + ": " + value);
  }
  hop.url = address.url;
  hop.head_only = head_only;
  hop.if_match = if_match_value(request.expected);
  return hop;
}

ResponseVerdict S3Origin::judge(const HttpAnswer& answer) {
  const int status = answer.head.status();
  ResponseVerdict verdict;
  if (is_redirect(status)) {
    verdict.error = Error(ErrorCode::bad_input,
                          "HTTP " + std::to_string(status) +
                              ": the bucket is elsewhere, and the server does not say where; set "
                              "AWS_REGION or AWS_ENDPOINT_URL_S3");
    return verdict;
  }
  if ((status == 200 || status == 206) && answer.head.find("etag").value_or("").empty()) {
    // S3 may notice a failure only after it has sent 200: the body is then the error's.
    verdict.error = Error(ErrorCode::unavailable,
                          "the server's answer has no ETag, so its body is not the object's");
    return verdict;
  }
  verdict = HttpOrigin::judge(answer);
  const auto stated = stated_.find(answer.request.uri.text);
  if (!verdict.error && stated != stated_.end() &&
      stated->second.validator == verdict.info.validator &&
      stated->second.size == verdict.info.size) {
    verdict.info = stated->second;
  }
  return verdict;
}

/// Keeps what the answer to a HEAD says of the object.
void S3Origin::learn_digests(const HttpAnswer& answer) {
  const ResponseVerdict verdict = HttpOrigin::judge(answer);
  ObjectInfo& info = stated_[answer.request.uri.text];
  if (answer.head.status() != 200 || verdict.error) {
    return;  // Known to be unknown: the object's own answer will say what is wrong.
  }
  info = verdict.info;
  // Of the parts' checksums, which the other type is made of, nothing can be checked.
  if (answer.head.find("x-amz-checksum-type").value_or("FULL_OBJECT") != "FULL_OBJECT") {
    return;
  }
  const auto stated = [&](const char* name, std::size_t bytes) {
    return hex_of_base64(answer.head.find(name).value_or(""), bytes);
  };
  info.sha256 = stated("x-amz-checksum-sha256", 32);
  if (const std::string crc = stated("x-amz-checksum-crc64nvme", 8); !crc.empty()) {
    info.crc = "crc64nvme:" + crc;
  } else if (const std::string crc32c = stated("x-amz-checksum-crc32c", 4); !crc32c.empty()) {
    info.crc = "crc32c:" + crc32c;
  }
}

Result<std::optional<HttpHop>> S3Origin::after(const HttpAnswer& answer,
                                               const ResponseVerdict& verdict,
                                               std::string_view body) {
  const int status = answer.head.status();
  if (answer.hop.head_only) {
    const std::string elsewhere = answer.head.find("x-amz-bucket-region").value_or("");
    if ((is_redirect(status) || status == 400) && is_region_name(elsewhere) &&
        region_of_bucket_.emplace(s3_bucket(answer.request.uri), elsewhere).second) {
      LIB_TRY(HttpHop hop, hop_at(answer.request, signing_time_s(), true));
      return MaybeHop(std::move(hop));
    }
    learn_digests(answer);
    LIB_TRY(HttpHop hop, hop_at(answer.request, signing_time_s()));
    return MaybeHop(std::move(hop));
  }
  if (!verdict.error || status < 300 || status == 412 || status == 416) {
    return MaybeHop();
  }
  const S3Error error = parse_s3_error(body);
  if (is_redirect(status) || status == 400) {
    const std::string region = answer.head.find("x-amz-bucket-region").value_or(error.region);
    LIB_TRY(MaybeHop hop, again_in(region, answer));
    if (hop) {
      return hop;
    }
  }
  if (error.code == "RequestTimeTooSkewed") {
    LIB_TRY(MaybeHop hop, again_at_server_time(answer));
    if (hop) {
      return hop;
    }
  }
  if (is_about_credentials(error.code)) {
    LIB_TRY(settings_, read_aws_settings(options_.environment, *options_.files));
    LIB_TRY(MaybeHop hop, again_if_changed(answer));
    if (hop) {
      return hop;
    }
  }
  if (is_passing_s3_error(error.code)) {
    return Error(ErrorCode::unavailable, status_text(status, error.code));
  }
  if (is_redirect(status) || verdict.error->code() == ErrorCode::unavailable) {
    return MaybeHop();
  }
  return refused(status, error.code, *verdict.error);
}

Result<std::optional<HttpHop>> S3Origin::again_if_changed(const HttpAnswer& answer) const {
  LIB_TRY(const HttpHop same_time, hop_at(answer.request, signed_at_s(answer.hop)));
  if (same_time.url == answer.hop.url && same_time.headers == answer.hop.headers) {
    return MaybeHop();  // It would get the same answer.
  }
  LIB_TRY(HttpHop hop, hop_at(answer.request, signing_time_s()));
  return MaybeHop(std::move(hop));
}

Result<std::optional<HttpHop>> S3Origin::again_in(const std::string& region,
                                                  const HttpAnswer& answer) {
  if (!is_region_name(region)) {
    return MaybeHop();
  }
  // A bucket does not move: the first answer stands, so servers cannot send us around for ever.
  region_of_bucket_.emplace(s3_bucket(answer.request.uri), region);
  return again_if_changed(answer);
}

Result<std::optional<HttpHop>> S3Origin::again_at_server_time(const HttpAnswer& answer) {
  const std::string date = answer.head.find("date").value_or("");
  const std::int64_t server_s = curl_getdate(date.c_str(), nullptr);
  if (server_s < kYear2000Seconds || server_s > kYear2100Seconds ||
      std::abs(server_s - signed_at_s(answer.hop)) <= kHarmlessSkewSeconds) {
    return MaybeHop();
  }
  clock_offset_s_ = server_s - options_.wall_now_s();
  log(LogLevel::warning, "clock_differs",
      {{"server", answer.hop.url.origin()},
       {"seconds", clock_offset_s_},
       {"advice", "requests are signed for the server's time; set this machine's clock"}});
  LIB_TRY(HttpHop hop, hop_at(answer.request, signing_time_s()));
  return MaybeHop(std::move(hop));
}

Error S3Origin::refused(int status, const std::string& code, const Error& verdict) const {
  const std::string text = status_text(status, code);
  const auto because = [&](const std::string& why) {
    return Error(ErrorCode::bad_input, text + ": " + why);
  };
  const std::string& asker = settings_->asker;
  if (code == "NoSuchBucket") {
    return because("there is no such bucket; check its name, AWS_REGION and the endpoint");
  }
  if (code == "InvalidObjectState") {
    return because("the object is in an archive; restore it first");
  }
  if (code == "RequestTimeTooSkewed") {
    return because("this machine's clock and the server's differ too much; set the clock");
  }
  if (code == "ExpiredToken" || code == "TokenRefreshRequired") {
    return because("the session of " + asker + " has expired; renew it and run again");
  }
  if (code == "SignatureDoesNotMatch") {
    return because("the secret access key of " + asker + " is wrong; check it");
  }
  if (is_about_credentials(code)) {
    return because("the server does not know the access key of " + asker +
                   "; check it, its session token and the endpoint");
  }
  if (status == 401 || status == 403) {
    return settings_->credentials
               ? because("not readable by " + asker +
                         "; check the key and who may read it (without s3:ListBucket an object "
                         "that is not there looks the same)")
               : because(
                     "not readable without credentials, and none are set; check the key, or "
                     "set AWS_PROFILE, or AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY");
  }
  if (status == 404) {
    return {verdict.code(), text + ": the bucket has no such object; check the key"};
  }
  return because("the server refuses the request; check the key, AWS_REGION and the endpoint");
}

}  // namespace librarian::weightmap::remote
