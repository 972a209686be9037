#include "weightmap/remote/hub_revision.h"

#include "base/json.h"
#include "weightmap/remote/hub_files.h"
#include "weightmap/remote/hub_place.h"

namespace librarian::weightmap::remote {
namespace {

// The answer lists every file of the repository as well.
constexpr std::uint64_t kAnswerBytesMax = 16U << 20U;

bool is_offline(const Environment& environment) {
  const std::string value = environment("HF_HUB_OFFLINE").value_or("");
  return value == "1" || value == "true" || value == "TRUE" || value == "yes" || value == "ON";
}

Result<std::string> ask_for_commit(Fetcher& fetcher, const HubPlace& place,
                                   const std::stop_token& stop) {
  HubPlace asked = place;
  asked.query = "revision";
  LIB_TRY(const Fetcher::Document document,
          fetcher.read_document({"hf", asked.text()}, kAnswerBytesMax, stop));
  const std::string what = "the hub's answer for " + place.text();
  JsonLimits limits;
  limits.text_bytes_max = kAnswerBytesMax;
  limits.values_max = 1'000'000;
  LIB_TRY(const Json json, parse_json(document.body, what, limits));
  LIB_TRY(std::string commit, json_string(json, "sha", what));
  if (!is_commit(commit)) {
    return Error(ErrorCode::bad_input, what + ": names no commit; is HF_ENDPOINT a model hub?");
  }
  return commit;
}

}  // namespace

Result<PinnedModel> pin_model(Fetcher& fetcher, const Uri& uri,
                              const std::optional<std::string>& known_commit,
                              const Environment& environment, const std::stop_token& stop) {
  if (uri.scheme != "hf") {
    return PinnedModel{uri, uri};
  }
  LIB_TRY(HubPlace place, parse_hub_place(uri.text));
  if (!place.path.empty()) {
    return Error(ErrorCode::invalid_argument,
                 uri.display() + ": give the model itself, hf://org/name@revision");
  }
  if (known_commit) {
    place.revision = *known_commit;
  } else if (is_offline(environment)) {
    const auto commit = cached_commit(environment, place);
    if (!commit) {
      return Error(ErrorCode::bad_input, uri.display() +
                                             ": HF_HUB_OFFLINE is set and this revision is not in "
                                             "the hub's cache; unset it, or download the model");
    }
    place.revision = *commit;
  } else if (!place.pinned()) {
    LIB_TRY(place.revision, ask_for_commit(fetcher, place, stop));
  }
  PinnedModel pinned;
  pinned.uri = {"hf", place.text()};
  pinned.read_from = pinned.uri;
  if (const auto directory = cached_snapshot(environment, place)) {
    pinned.read_from = {"file", *directory};
  } else if (is_offline(environment)) {
    return Error(ErrorCode::bad_input, pinned.uri.display() +
                                           ": HF_HUB_OFFLINE is set and this commit is not in the "
                                           "hub's cache; unset it, or download the model");
  }
  return pinned;
}

}  // namespace librarian::weightmap::remote
