#include "weightmap/remote/hub_listing.h"

#include <algorithm>
#include <cctype>

#include "base/json.h"
#include "base/log.h"
#include "weightmap/remote/hub_place.h"

namespace librarian::weightmap::remote {
namespace {

// The hub lists 1000 files on a page, in some 400 bytes each.
constexpr std::uint64_t kPageBytesMax = 4U << 20U;
constexpr std::size_t kPageValuesMax = 200'000;
constexpr std::uint32_t kPagesMax = 200;
constexpr std::size_t kPathBytesMax = 4096;
constexpr std::size_t kCursorBytesMax = 4096;
constexpr std::size_t kSha256Digits = 64;

std::string_view trimmed(std::string_view text) {
  const std::size_t begin = text.find_first_not_of(" \t");
  return begin == std::string_view::npos
             ? std::string_view()
             : text.substr(begin, text.find_last_not_of(" \t") + 1 - begin);
}

bool says_next(std::string_view parameters) {
  while (!parameters.empty()) {
    const std::size_t end = std::min(parameters.find(';'), parameters.size());
    const std::string_view one = trimmed(parameters.substr(0, end));
    if (one == "rel=\"next\"" || one == "rel=next") {
      return true;
    }
    parameters.remove_prefix(std::min(end + 1, parameters.size()));
  }
  return false;
}

/// The target of the link whose relation is "next"; none: there is no such link.
std::optional<std::string_view> next_target(std::string_view link) {
  while (true) {
    const std::size_t open = link.find('<');
    const std::size_t close = link.find('>', std::min(open, link.size()));
    if (close == std::string_view::npos) {
      return std::nullopt;
    }
    const std::string_view target = link.substr(open + 1, close - open - 1);
    link.remove_prefix(close + 1);
    if (says_next(link.substr(0, link.find(',')))) {
      return target;
    }
  }
}

Result<HubListedFile> read_entry(const Json& entry, const std::string& what) {
  HubListedFile file;
  LIB_TRY(file.size, json_uint(entry, "size", what));
  const auto lfs = entry.find("lfs");
  if (lfs == entry.end() || lfs->is_null()) {
    return file;
  }
  LIB_TRY(file.sha256, json_string(*lfs, "oid", what));
  LIB_TRY(file.size, json_uint(*lfs, "size", what));
  if (file.sha256.size() != kSha256Digits ||
      file.sha256.find_first_not_of("0123456789abcdef") != std::string::npos) {
    return Error(ErrorCode::bad_input, what + ": 'oid' is no SHA-256");
  }
  return file;
}

std::string said_of(std::uint64_t size, const std::string& sha256) {
  return std::to_string(size) + " bytes" + (sha256.empty() ? "" : " with SHA-256 " + sha256);
}

Result<HubListing> ask_for_all_pages(Fetcher& fetcher, const Uri& model,
                                     const std::stop_token& stop) {
  LIB_TRY(HubPlace place, parse_hub_place(model.text));
  HubListing listing;
  place.query = "tree";
  for (std::uint32_t page = 1; page <= kPagesMax; ++page) {
    LIB_TRY(const Fetcher::Document document,
            fetcher.read_document({"hf", place.text()}, kPageBytesMax, stop));
    const std::string what = "page " + std::to_string(page) + " of the hub's list";
    LIB_TRY_VOID(add_hub_page(document.body, what, listing));
    LIB_TRY(const auto cursor, next_hub_page(document.link));
    if (!cursor) {
      return listing;
    }
    place.query = "tree&cursor=" + *cursor;
  }
  return Error(ErrorCode::bad_input, "more than " + std::to_string(kPagesMax) + " pages");
}

}  // namespace

Result<void> add_hub_page(std::string_view json, const std::string& what, HubListing& listing) {
  JsonLimits limits;
  limits.text_bytes_max = kPageBytesMax;
  limits.values_max = kPageValuesMax;
  limits.string_bytes_max = kPathBytesMax;
  LIB_TRY(const Json page, parse_json_array(json, what, limits));
  for (const Json& entry : page) {
    LIB_TRY(const std::string type, json_string(entry, "type", what));
    LIB_TRY(std::string path, json_string(entry, "path", what));
    if (type != "file") {
      continue;
    }
    LIB_TRY(HubListedFile file, read_entry(entry, what));
    if (!listing.try_emplace(std::move(path), std::move(file)).second) {
      return Error(ErrorCode::bad_input, what + ": lists a file twice");
    }
  }
  return {};
}

Result<std::optional<std::string>> next_hub_page(std::string_view link) {
  constexpr std::string_view kName = "cursor=";
  const auto target = next_target(link);
  if (!target) {
    return std::optional<std::string>();
  }
  std::string_view query = target->substr(std::min(target->size(), target->find('?')));
  while (!query.empty()) {
    query.remove_prefix(1);
    const std::string_view one = query.substr(0, query.find_first_of("&#"));
    query.remove_prefix(one.size());
    if (!one.starts_with(kName)) {
      continue;
    }
    const std::string_view cursor = one.substr(kName.size());
    const bool sendable = std::all_of(cursor.begin(), cursor.end(), [](unsigned char c) {
      return std::isalnum(c) != 0 ||
             std::string_view("-._~%+/=").find(static_cast<char>(c)) != std::string_view::npos;
    });
    if (!cursor.empty() && cursor.size() <= kCursorBytesMax && sendable) {
      return std::optional(std::string(cursor));
    }
  }
  return Error(ErrorCode::bad_input, "the link to the next page has no cursor");
}

Result<std::optional<HubListing>> list_hub_files(Fetcher& fetcher, const Uri& model,
                                                 const std::stop_token& stop) {
  auto listing = ask_for_all_pages(fetcher, model, stop);
  if (listing) {
    return std::optional(*std::move(listing));
  }
  if (listing.error().code() == ErrorCode::cancelled) {
    return listing.error();
  }
  // Nothing depends on it: what is wrong with the model its files' own answers say.
  log(LogLevel::info, "hub_has_no_list",
      {{"model", model.display()}, {"why", listing.error().message()}});
  return std::optional<HubListing>();
}

Result<void> check_against_listing(const HubListedFile& listed, ObjectInfo& info) {
  const bool same_bytes =
      listed.sha256.empty() || info.sha256.empty() || listed.sha256 == info.sha256;
  if (listed.size != info.size || !same_bytes) {
    return Error(ErrorCode::source_changed, "the hub lists " + said_of(listed.size, listed.sha256) +
                                                " and serves " + said_of(info.size, info.sha256) +
                                                "; try again later, or another HF_ENDPOINT");
  }
  if (info.sha256.empty()) {
    info.sha256 = listed.sha256;
  }
  return {};
}

}  // namespace librarian::weightmap::remote
