#include "ingest/tokenizer_check.h"

#include <algorithm>
#include <vector>

#include "base/digest.h"
#include "base/json.h"
#include "base/units.h"
#include "weightmap/remote/fetch_in_order.h"

namespace librarian::ingest {
namespace {

using weightmap::remote::Fetcher;
using weightmap::remote::Uri;

constexpr std::uint64_t kFileBytesMax = 64 * kMiB;
constexpr std::uint64_t kPieceBytes = kMiB;

/// An origin that refuses a file, or has a web page there, does not have it for us.
bool is_absent(const Error& error) {
  return error.code() == ErrorCode::not_found || error.code() == ErrorCode::bad_input;
}

/// SHA-256 of a file, a megabyte at a time; nothing if the model has none.
Result<std::optional<std::string>> file_sha256(Fetcher& fetcher, Clock& clock, const Uri& uri,
                                               const std::stop_token& stop) {
  const auto opened = fetcher.open(uri, kPieceBytes, stop);
  if (!opened) {
    return is_absent(opened.error()) ? Result<std::optional<std::string>>(std::nullopt)
                                     : opened.error();
  }
  if (opened->info.size > kFileBytesMax) {
    return Error(ErrorCode::bad_input, uri.display() + ": " + format_bytes(opened->info.size) +
                                           " is too large for a tokenizer; check the address");
  }
  StreamingSha256 sha256;
  sha256.update(std::as_bytes(std::span(opened->head)));
  std::vector<std::byte> window(kPieceBytes);
  LIB_TRY_VOID(weightmap::remote::fetch_in_order(
      fetcher, clock, opened->id, {opened->head.size(), opened->info.size}, window, kPieceBytes,
      [&](std::span<const std::byte> bytes) {
        sha256.update(bytes);
        return Result<void>();
      },
      stop));
  return std::optional(sha256.finish());
}

/// The text that `chat_template` of a JSON file is, or that its list names "default".
std::optional<std::string> template_in(const Json& document) {
  const auto found = document.find("chat_template");
  if (found == document.end()) {
    return std::nullopt;
  }
  if (found->is_string()) {
    return found->get<std::string>();
  }
  if (!found->is_array()) {
    return std::nullopt;
  }
  for (const Json& entry : *found) {
    if (entry.is_object() && entry.value("name", Json()) == "default" &&
        entry.value("template", Json()).is_string()) {
      return entry["template"].get<std::string>();
    }
  }
  return std::nullopt;
}

/// SHA-256 of the model's chat template; nothing if it has none.
Result<std::optional<std::string>> template_sha256(Fetcher& fetcher, Clock& clock, const Uri& model,
                                                   const std::stop_token& stop) {
  LIB_TRY(const std::optional<std::string> own,
          file_sha256(fetcher, clock, model.child("chat_template.jinja"), stop));
  if (own) {
    return own;
  }
  for (const char* name : {"tokenizer_config.json", "chat_template.json"}) {
    const Uri uri = model.child(name);
    const auto text =
        weightmap::remote::read_object(fetcher, uri, JsonLimits().text_bytes_max, stop);
    if (!text) {
      if (is_absent(text.error())) {
        continue;
      }
      return text.error();
    }
    // One that we cannot read says nothing of its template.
    const auto document = parse_json(*text, uri.display());
    const auto found = document ? template_in(*document) : std::nullopt;
    if (found) {
      return std::optional(sha256_hex(*found));
    }
  }
  return std::optional<std::string>();
}

}  // namespace

Result<bool> save_tokenizer(Fetcher& fetcher, FileSystem& files, const Uri& model,
                            const std::string& path, const std::stop_token& stop) {
  const auto text =
      weightmap::remote::read_object(fetcher, model.child("tokenizer.json"), kFileBytesMax, stop);
  if (!text) {
    return is_absent(text.error()) ? Result<bool>(false) : text.error();
  }
  LIB_TRY_VOID(replace_file(files, path, *text));
  return true;
}

Result<std::optional<std::string>> check_tokenizer(Fetcher& fetcher, Clock& clock, const Uri& model,
                                                   const std::string& path,
                                                   const TokenOrigin& origin,
                                                   const std::stop_token& stop) {
  if (!origin.tokenizer_sha256.empty()) {
    const Uri uri = model.child("tokenizer.json");
    LIB_TRY(const std::optional<std::string> found, file_sha256(fetcher, clock, uri, stop));
    if (found && *found != origin.tokenizer_sha256) {
      return Error(ErrorCode::bad_input,
                   path + ": made with another tokenizer (SHA-256 " +
                       origin.tokenizer_sha256.substr(0, 12) + "...) than " + uri.display() + " (" +
                       found->substr(0, 12) +
                       "...), so its ids would mean other words; tokenize with the model's own");
    }
  }
  if (!origin.chat_template_sha256.empty()) {
    LIB_TRY(const std::optional<std::string> found, template_sha256(fetcher, clock, model, stop));
    if (found && *found != origin.chat_template_sha256) {
      return std::optional(path +
                           ": its chats were written with another chat template than that "
                           "of " +
                           model.display());
    }
  }
  return std::optional<std::string>();
}

}  // namespace librarian::ingest
