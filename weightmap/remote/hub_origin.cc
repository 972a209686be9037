#include "weightmap/remote/hub_origin.h"

#include <algorithm>
#include <limits>

#include "base/text.h"
#include "weightmap/remote/hub_files.h"

namespace librarian::weightmap::remote {
namespace {

constexpr const char* kDefaultEndpoint = "https://huggingface.co";
constexpr std::size_t kSha256Digits = 64;
// Of what is left when the URL is new; the rest is for requests that are under way.
constexpr double kUsedOfLifetime = 0.8;
// While one request asks the hub anew, the others go on with what they have.
constexpr std::int64_t kAskAgainSeconds = 30;

/// What the resolver's answer says the file is.
std::optional<ObjectInfo> linked_info(const ResponseHead& head) {
  std::string tag = head.find("x-linked-etag").value_or("");
  if (tag.starts_with("W/")) {
    tag.erase(0, 2);
  }
  if (tag.size() >= 2 && tag.front() == '"' && tag.back() == '"') {
    tag = tag.substr(1, tag.size() - 2);
  }
  const auto size = parse_u64(head.find("x-linked-size").value_or(""));
  if (tag.empty() || tag.find('"') != std::string::npos || !size) {
    return std::nullopt;
  }
  ObjectInfo info;
  info.size = *size;
  info.validator = '"' + tag + '"';
  info.strong = true;
  if (tag.size() == kSha256Digits &&
      tag.find_first_not_of("0123456789abcdef") == std::string::npos) {
    info.sha256 = tag;
  }
  return info;
}

bool is_refusal(int status) {
  return status == 400 || status == 401 || status == 403 || status == 404 || status == 410;
}

}  // namespace

Result<void> HubOrigin::configure() {
  if (configured_) {
    return {};
  }
  std::string endpoint = options_.environment("HF_ENDPOINT").value_or("");
  if (endpoint.empty()) {
    endpoint = kDefaultEndpoint;
  }
  while (endpoint.ends_with('/')) {
    endpoint.pop_back();
  }
  auto parsed = parse_uri(endpoint);
  if (!parsed || !parsed->scheme.starts_with("http") ||
      parsed->text.find('?') != std::string::npos) {
    return Error(ErrorCode::invalid_argument,
                 "HF_ENDPOINT must be a URL such as https://huggingface.co");
  }
  endpoint_ = *std::move(parsed);
  while (endpoint_.text.ends_with('/')) {
    endpoint_.text.pop_back();
  }
  LIB_TRY(token_, find_hub_token(options_.environment));
  configured_ = true;
  return {};
}

HttpHop HubOrigin::hub_hop(const HubPlace& place, const TransferRequest& request) const {
  HttpHop hop;
  const std::string revision = percent_encode(place.revision, "");
  std::string path = "/" + place.repo + "/resolve/" + revision + "/";
  if (request.document) {
    const bool tree = place.query.starts_with("tree");
    path = "/api/models/" + place.repo + (tree ? "/tree/" : "/revision/") + revision +
           (tree ? "?recursive=true" + place.query.substr(4) : "");
  } else {
    path += percent_encode(place.path, "/");
    // Of a file that lies elsewhere the hub's own answer has no such tag.
    hop.if_match = request.expected && request.expected->sha256.empty()
                       ? if_match_value(request.expected)
                       : "";
  }
  hop.url = {endpoint_.scheme, endpoint_.text + path};
  if (!token_.empty()) {
    hop.headers.push_back("Authorization: Bearer " + token_);
  }
  return hop;
}

Result<HttpHop> HubOrigin::first_hop(const TransferRequest& request) {
  LIB_TRY_VOID(configure());
  LIB_TRY(const HubPlace place, parse_hub_place(request.uri.text));
  if (!request.document && (place.path.empty() || !place.pinned())) {
    return Error(ErrorCode::invalid_argument, "no file of a hub model at a known commit");
  }
  const auto found = resolutions_.find(request.uri.text);
  if (found == resolutions_.end()) {
    return hub_hop(place, request);
  }
  Resolution& resolution = found->second;
  const std::int64_t now = options_.wall_now_s();
  if (now >= resolution.refresh_at_s) {
    resolution.refresh_at_s = now + kAskAgainSeconds;
    return hub_hop(place, request);
  }
  return resolution.hop;
}

bool HubOrigin::resolves(const HttpHop& hop) const {
  return !hop.redirected && hop.url.text.find("/resolve/") != std::string::npos;
}

ResponseVerdict HubOrigin::judge(const HttpAnswer& answer) {
  const auto found = resolutions_.find(answer.request.uri.text);
  const bool elsewhere = !is_hub(answer.hop.url);
  if (!elsewhere) {
    ResponseVerdict verdict = judge_answer(answer, answer.request.expected);
    const std::string commit = answer.head.find("x-repo-commit").value_or("");
    const auto place = parse_hub_place(answer.request.uri.text);
    if (!answer.request.document && place && !commit.empty() && commit != place->revision &&
        !verdict.error) {
      verdict.location.clear();
      verdict.error = Error(ErrorCode::source_changed,
                            "the hub answers for commit " + commit.substr(0, 40) + " instead");
    }
    return verdict;
  }
  if (found == resolutions_.end() || !found->second.info) {
    return judge_answer(answer, answer.request.expected);
  }
  // The other host has tags of its own; what the file is, the hub has said.
  Resolution& resolution = found->second;
  ObjectInfo expected;
  expected.size = resolution.info->size;
  expected.validator = resolution.etag.value_or("");
  ResponseVerdict verdict = judge_answer(answer, expected);
  if (verdict.error && verdict.error->code() == ErrorCode::source_changed) {
    verdict.error = verdict.error->with_code(ErrorCode::unavailable);
    resolution.etag.reset();
    resolution.refresh_at_s = 0;
    return verdict;
  }
  if (!verdict.error && verdict.location.empty()) {
    resolution.etag = verdict.info.validator;
    verdict.info = *resolution.info;
  }
  return verdict;
}

Result<void> HubOrigin::keep(const HttpAnswer& answer, HttpHop next) {
  Resolution resolution;
  resolution.info = linked_info(answer.head);
  if (resolution.info && answer.request.expected) {
    const ObjectInfo& expected = *answer.request.expected;
    if (resolution.info->validator != expected.validator ||
        resolution.info->size != expected.size) {
      return Error(ErrorCode::source_changed, "the hub says " + resolution.info->validator +
                                                  " of " + std::to_string(resolution.info->size) +
                                                  " bytes, and it was " + expected.validator +
                                                  " of " + std::to_string(expected.size));
    }
  }
  const std::int64_t now = options_.wall_now_s();
  const auto until = signed_until(next.url);
  resolution.refresh_at_s =
      until ? now + static_cast<std::int64_t>(static_cast<double>(*until - now) * kUsedOfLifetime)
            : std::numeric_limits<std::int64_t>::max();
  resolution.hop = std::move(next);
  resolutions_[answer.request.uri.text] = std::move(resolution);
  return {};
}

Result<std::optional<HttpHop>> HubOrigin::after(const HttpAnswer& answer,
                                                const ResponseVerdict& verdict,
                                                std::string_view /*body*/) {
  LIB_TRY(const HubPlace place, parse_hub_place(answer.request.uri.text));
  const bool from_hub = is_hub(answer.hop.url);
  if (!verdict.location.empty()) {
    LIB_TRY(HttpHop next, redirect_hop(answer, verdict.location));
    if (from_hub && !is_hub(next.url) && !answer.request.document) {
      next.if_match.clear();
      LIB_TRY_VOID(keep(answer, next));
    }
    return std::optional(std::move(next));
  }
  if (from_hub && verdict.error->code() != ErrorCode::unavailable &&
      verdict.error->code() != ErrorCode::source_changed) {
    return refusal(place, answer, *verdict.error);
  }
  if (!from_hub && answer.hop_number == 0 && is_refusal(answer.head.status())) {
    // The signed URL has expired, or was withdrawn. Another request may have a new one already.
    const auto found = resolutions_.find(answer.request.uri.text);
    if (found != resolutions_.end() && found->second.hop.url != answer.hop.url) {
      return std::optional(found->second.hop);
    }
    if (found != resolutions_.end()) {
      // What the hub said of the file stands: answers from the old URL may still be under way.
      found->second.refresh_at_s = 0;
    }
    return std::optional(hub_hop(place, answer.request));
  }
  return std::optional<HttpHop>();
}

Error HubOrigin::refusal(const HubPlace& place, const HttpAnswer& answer,
                         const Error& plain) const {
  const int status = answer.head.status();
  const std::string code = answer.head.find("x-error-code").value_or("");
  const std::string page = endpoint_.text + "/" + place.repo;
  const std::string said = "HTTP " + std::to_string(status);
  if (code == "GatedRepo") {
    return {ErrorCode::bad_input,
            said + ": this model is gated: accept its licence at " + page +
                (token_.empty() ? " and set HF_TOKEN to a token of that account"
                                : " with the account whose token HF_TOKEN is")};
  }
  if (code == "RevisionNotFound") {
    return {ErrorCode::bad_input,
            said + ": " + place.repo + " has no revision '" + place.revision + "'; see " + page};
  }
  if (status == 401 && !token_.empty() && code != "RepoNotFound") {
    return {ErrorCode::bad_input,
            said + ": the hub does not accept the token; make a new one and set HF_TOKEN"};
  }
  if (code == "RepoNotFound" || (answer.request.document && (status == 401 || status == 404))) {
    return {ErrorCode::bad_input, said + ": the hub has no model " + place.repo +
                                      ", or it is private; check the name" +
                                      (token_.empty() ? ", and set HF_TOKEN if it is yours"
                                                      : ", and whether HF_TOKEN may read it")};
  }
  return plain;
}

}  // namespace librarian::weightmap::remote
