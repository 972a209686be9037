// The seal of JSON files: see FORMAT.md section 2.
#include <algorithm>

#include "activation_store/store_files.h"

namespace librarian::activation_store {
namespace {

constexpr char kSeal[] = "xxh3";
constexpr std::size_t kSealDigits = 32;
// A part's manifest lists every file; these hold for parts of a quarter million files.
constexpr JsonLimits kLimits{.text_bytes_max = 64U << 20U, .values_max = 2'000'000};

std::string zero_seal() { return std::string(kSealDigits, '0'); }

/// Where the only `"<hex>"` of the text has its first digit, or npos.
std::size_t find_seal(std::string_view text, const std::string& hex) {
  const std::string quoted = '"' + hex + '"';
  const std::size_t at = text.find(quoted);
  if (at == std::string_view::npos || text.find(quoted, at + 1) != std::string_view::npos) {
    return std::string_view::npos;
  }
  return at + 1;
}

/// The object that holds the seal: Zarr readers refuse unknown members beside `attributes`, and
/// take anything inside.
template <typename Document>
auto& sealed_object(Document& document) {
  return document.contains("attributes") ? document.at("attributes") : document;
}

}  // namespace

std::string seal_json(const Json& document) {
  Json sealed = document;
  LIB_CHECK(sealed.is_object() && sealed_object(sealed).is_object());
  LIB_CHECK(!sealed_object(sealed).contains(kSeal));
  // The place of the seal is where two placeholders give different text: a search for the value
  // could find a digest of zero that belongs to the document.
  sealed_object(sealed)[kSeal] = std::string(kSealDigits, '1');
  const std::string other = sealed.dump(1) + "\n";
  sealed_object(sealed)[kSeal] = zero_seal();
  std::string text = sealed.dump(1) + "\n";
  const auto place = std::mismatch(text.begin(), text.end(), other.begin(), other.end()).first;
  const std::string seal = xxh3_128(std::string_view(text)).hex();
  std::copy(seal.begin(), seal.end(), place);
  return text;
}

Result<Json> open_sealed_json(std::string_view text, const std::string& what) {
  const auto damaged = [&](const std::string& reason) {
    return Error(ErrorCode::corrupt, what + ": " + reason);
  };
  auto parsed = parse_json(text, what, kLimits);
  if (!parsed) {
    return parsed.error().with_code(ErrorCode::corrupt);
  }
  Json document = *std::move(parsed);
  const Json& holder = sealed_object(document);
  if (!holder.is_object() || !holder.contains(kSeal) || !holder.at(kSeal).is_string()) {
    return damaged("its seal 'xxh3' is missing");
  }
  const std::string seal = holder.at(kSeal).get<std::string>();
  const std::size_t at =
      seal.size() == kSealDigits ? find_seal(text, seal) : std::string_view::npos;
  if (at == std::string_view::npos) {
    return damaged("its seal 'xxh3' is not a digest that stands in it once");
  }
  std::string zeroed(text);
  zeroed.replace(at, kSealDigits, zero_seal());
  if (xxh3_128(std::string_view(zeroed)).hex() != seal) {
    return damaged("its bytes are not those that 'xxh3' seals");
  }
  sealed_object(document).erase(kSeal);
  return document;
}

}  // namespace librarian::activation_store
