#include <curl/curl.h>

#include <algorithm>
#include <cctype>
#include <string_view>

#include "base/text.h"
#include "weightmap/remote/curl_handles.h"
#include "weightmap/remote/hub_place.h"
#include "weightmap/remote/s3_address.h"
#include "weightmap/remote/transport.h"
#include "weightmap/remote/uri_parts.h"

namespace librarian::weightmap::remote {
namespace {

constexpr std::size_t kUriBytesMax = 8192;  // Signed URLs reach about 2 KiB.

Error not_a_place(const std::string& why) {
  return {ErrorCode::invalid_argument,
          why + "; give a directory, file:///dir, https://host/dir/ or hf://org/name"};
}

int hex_value(char c) {
  if (c >= '0' && c <= '9') {
    return c - '0';
  }
  const char low = static_cast<char>(c | 0x20);
  return low >= 'a' && low <= 'f' ? low - 'a' + 10 : -1;
}

Result<Uri> file_uri(std::string_view rest) {
  // file://localhost/dir and file:///dir are the same; any other host is another machine.
  const std::size_t slash = rest.find('/');
  const std::string host = lower_case(rest.substr(0, slash));
  if (slash == std::string_view::npos || (!host.empty() && host != "localhost")) {
    return not_a_place("a file: URI must be file:///absolute/path");
  }
  std::string path;
  for (std::size_t i = slash; i < rest.size(); ++i) {
    if (rest[i] != '%') {
      path.push_back(rest[i]);
      continue;
    }
    const int high = i + 2 < rest.size() ? hex_value(rest[i + 1]) : -1;
    const int low = i + 2 < rest.size() ? hex_value(rest[i + 2]) : -1;
    if (high < 0 || low < 0 || high * 16 + low == 0) {
      return not_a_place("a file: URI has a bad percent escape");
    }
    path.push_back(static_cast<char>(high * 16 + low));
    i += 2;
  }
  return Uri{"file", path};
}

Result<std::string> url_part(CURLU* url, CURLUPart part) {
  char* raw = nullptr;
  if (curl_url_get(url, part, &raw, 0) != CURLUE_OK) {
    return Error(ErrorCode::not_found, "the URL has no such part");
  }
  const CurlString text(raw);
  return std::string(text.get());
}

// The normalised http or https URL in `url`, or why it is none we may use.
Result<Uri> http_uri(CURLU* url) {
  LIB_TRY(const std::string scheme, url_part(url, CURLUPART_SCHEME));
  if (scheme != "http" && scheme != "https") {
    return not_a_place("the scheme '" + scheme + "' is not supported");
  }
  if (url_part(url, CURLUPART_USER) || url_part(url, CURLUPART_PASSWORD)) {
    return Error(ErrorCode::invalid_argument,
                 "a URL must not carry a user name or password: it would end up in logs; leave "
                 "it out");
  }
  const auto host = url_part(url, CURLUPART_HOST);
  if (!host || host->empty()) {
    return not_a_place("the URL has no host");
  }
  // A fragment never reaches the server.
  LIB_CHECK(curl_url_set(url, CURLUPART_FRAGMENT, nullptr, 0) == CURLUE_OK);
  LIB_TRY(std::string text, url_part(url, CURLUPART_URL));
  return Uri{scheme, std::move(text)};
}

bool has_control_byte(std::string_view text) {
  return std::any_of(text.begin(), text.end(), [](unsigned char c) { return c < 32 || c == 127; });
}

}  // namespace

Result<Uri> parse_uri(const std::string& text) {
  if (text.empty() || text.size() > kUriBytesMax) {
    return not_a_place("the place is empty or longer than 8 KiB");
  }
  if (text.find('\0') != std::string::npos) {
    return not_a_place("the place contains a NUL byte");
  }
  const std::size_t mark = text.find("://");
  // A slash before "://" makes it a path with an odd name.
  if (mark == std::string::npos || text.find('/') < mark) {
    return Uri{"file", text};
  }
  const std::string scheme = lower_case(std::string_view(text).substr(0, mark));
  if (scheme == "file") {
    return file_uri(std::string_view(text).substr(mark + 3));
  }
  if (scheme == "hf") {
    LIB_TRY(const HubPlace place, parse_hub_place("hf" + text.substr(mark)));
    if (text.find('?') != std::string::npos) {
      return not_a_place("a hub model has no query");
    }
    return Uri{"hf", place.text()};
  }
  if (scheme == "s3") {
    return s3_uri(std::string_view(text).substr(mark + 3));
  }
  if (has_control_byte(text)) {
    return not_a_place("the URL contains a control character");
  }
  // libcurl would take the first path component for the missing host.
  if (mark + 3 >= text.size() || text[mark + 3] == '/') {
    return not_a_place("the URL has no host");
  }
  const CurlUrl url(curl_url());
  LIB_CHECK(url != nullptr);
  const CURLUcode code = curl_url_set(url.get(), CURLUPART_URL, text.c_str(),
                                      CURLU_NON_SUPPORT_SCHEME | CURLU_URLENCODE);
  if (code != CURLUE_OK) {
    return not_a_place(std::string("the URL cannot be read (") + curl_url_strerror(code) + ")");
  }
  return http_uri(url.get());
}

Result<Uri> resolve_location(const Uri& base, const std::string& location) {
  if (location.empty() || location.size() > kUriBytesMax || has_control_byte(location)) {
    return Error(ErrorCode::bad_input,
                 "the server redirects to an unusable Location; check the URL");
  }
  const CurlUrl url(curl_url());
  LIB_CHECK(url != nullptr);
  LIB_CHECK(curl_url_set(url.get(), CURLUPART_URL, base.text.c_str(), 0) == CURLUE_OK);
  const CURLUcode code = curl_url_set(url.get(), CURLUPART_URL, location.c_str(),
                                      CURLU_NON_SUPPORT_SCHEME | CURLU_URLENCODE);
  if (code != CURLUE_OK) {
    return Error(ErrorCode::bad_input, std::string("the server redirects to an unusable URL (") +
                                           curl_url_strerror(code) + ")");
  }
  const auto scheme = url_part(url.get(), CURLUPART_SCHEME);
  if (!scheme || (*scheme != "http" && *scheme != "https")) {
    return Error(ErrorCode::bad_input, "the server redirects to " + scheme.value_or("no scheme") +
                                           ":, and only http and https are followed; check the "
                                           "URL");
  }
  auto target = http_uri(url.get());
  if (!target) {
    return target.error().with_code(ErrorCode::bad_input).with_context("the server's redirect");
  }
  if (base.scheme == "https" && target->scheme != "https") {
    return Error(ErrorCode::bad_input, "the server redirects from https to plain http (" +
                                           target->display() +
                                           "), which is refused; check the URL");
  }
  return target;
}

std::string host_of(const Uri& uri) {
  const CurlUrl url(curl_url());
  LIB_CHECK(url != nullptr);
  if (curl_url_set(url.get(), CURLUPART_URL, uri.text.c_str(), CURLU_NON_SUPPORT_SCHEME) !=
      CURLUE_OK) {
    return "";
  }
  const auto host = url_part(url.get(), CURLUPART_HOST);
  return host ? lower_case(*host) : "";
}

bool is_loopback(const Uri& uri) {
  const std::string host = host_of(uri);
  if (host == "localhost" || host == "[::1]") {
    return true;
  }
  // Only a dotted quad: "127.evil.example" is a name.
  return host.rfind("127.", 0) == 0 && host.find_first_not_of("0123456789.") == std::string::npos;
}

Result<void> check_allowed(const Uri& uri, bool insecure_http) {
  if (uri.scheme != "http" || insecure_http || is_loopback(uri)) {
    return {};
  }
  return Error(ErrorCode::invalid_argument,
               "plain http lets anybody on the way change the weights: use https://, or "
               "--insecure-http if this network is yours");
}

std::string Uri::display() const {
  return scheme == "file" || scheme == "s3" ? text : text.substr(0, text.find('?'));
}

std::string Uri::origin() const {
  if (scheme == "file" || scheme == "hf") {
    return scheme + "://";
  }
  const std::size_t host = scheme.size() + 3;
  return text.substr(0, text.find_first_of("/?", host));
}

Uri Uri::child(const std::string& name) const {
  LIB_CHECK(!name.empty() && name != "." && name != ".." &&
            name.find_first_of(std::string_view("/\0", 2)) == std::string::npos);
  // Not encoded, and without a query.
  if (scheme == "file" || scheme == "hf" || scheme == "s3") {
    return {scheme, text.back() == '/' ? text + name : text + "/" + name};
  }
  const std::size_t mark = text.find('?');
  std::string path = text.substr(0, mark);
  if (path.back() != '/') {
    path.push_back('/');
  }
  path += percent_encode(name, "");
  return {scheme, mark == std::string::npos ? path : path + text.substr(mark)};
}

}  // namespace librarian::weightmap::remote
