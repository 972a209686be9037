#include "ingest/npy.h"

#include <algorithm>
#include <charconv>
#include <cstring>
#include <limits>

namespace librarian::ingest {
namespace {

constexpr std::string_view kMagic = "\x93NUMPY";
constexpr std::size_t kHeaderBytesMax = 64U << 10U;
constexpr std::uint64_t kElementsMax = 1ULL << 36U;

Error bad(const std::string& what, const std::string& reason) {
  return Error(ErrorCode::bad_input, what + ": not a usable .npy file: " + reason);
}

/// The text behind `'key':`, with leading spaces removed; empty if the key is not there.
std::string_view value_of(std::string_view dict, std::string_view key) {
  const std::string quoted = "'" + std::string(key) + "':";
  const std::size_t at = dict.find(quoted);
  if (at == std::string_view::npos) {
    return {};
  }
  dict.remove_prefix(at + quoted.size());
  dict.remove_prefix(std::min(dict.find_first_not_of(' '), dict.size()));
  return dict;
}

template <typename T>
Result<void> convert(const std::vector<std::byte>& raw, const std::string& path,
                     std::vector<std::int32_t>& ids) {
  for (std::size_t i = 0; i < ids.size(); ++i) {
    T value{};
    std::memcpy(&value, raw.data() + i * sizeof(T), sizeof(T));
    if (!std::in_range<std::int32_t>(value)) {
      return bad(path, "element " + std::to_string(i) + " is " + std::to_string(value) +
                           ", not a token id");
    }
    ids[i] = static_cast<std::int32_t>(value);  // NOLINT(bugprone-signed-char-misuse): checked
  }
  return {};
}

}  // namespace

Result<NpyHeader> parse_npy_header(std::string_view text, const std::string& what) {
  if (text.size() < 12 || !text.starts_with(kMagic) || text[6] < 1 || text[6] > 3) {
    return bad(what, "it does not begin like one");
  }
  const bool short_length = text[6] == 1;
  const std::size_t length_bytes = short_length ? 2 : 4;
  std::uint32_t length = 0;
  std::memcpy(&length, text.data() + 8, length_bytes);
  const std::size_t begin = 8 + length_bytes;
  if (length > kHeaderBytesMax || begin + length > text.size()) {
    return bad(what, "its header claims " + std::to_string(length) + " bytes");
  }
  const std::string_view dict = text.substr(begin, length);
  NpyHeader header;
  header.data_begin = begin + length;
  std::string_view descr = value_of(dict, "descr");
  const std::string_view order = value_of(dict, "fortran_order");
  std::string_view shape = value_of(dict, "shape");
  if (descr.size() < 2 || descr.front() != '\'' || shape.empty() || shape.front() != '(' ||
      (!order.starts_with("True") && !order.starts_with("False"))) {
    return bad(what, "descr, fortran_order or shape is missing");
  }
  descr.remove_prefix(1);
  header.descr = descr.substr(0, descr.find('\''));
  header.fortran_order = order.starts_with("True");
  shape.remove_prefix(1);
  while (true) {
    shape.remove_prefix(std::min(shape.find_first_not_of(", "), shape.size()));
    if (shape.empty() || shape.front() == ')') {
      break;
    }
    std::uint64_t extent = 0;
    const auto [end, status] = std::from_chars(shape.data(), shape.data() + shape.size(), extent);
    if (status != std::errc() || header.shape.size() >= 8) {
      return bad(what, "its shape cannot be read");
    }
    header.shape.push_back(extent);
    shape.remove_prefix(static_cast<std::size_t>(end - shape.data()));
  }
  if (shape.empty()) {
    return bad(what, "its shape has no end");
  }
  return header;
}

Result<NpyRows> read_npy_ids(const File& file, const std::string& path) {
  std::string head(kHeaderBytesMax, '\0');
  LIB_TRY(const std::size_t got, file.read_at(0, std::as_writable_bytes(std::span(head))));
  head.resize(got);
  LIB_TRY(const NpyHeader header, parse_npy_header(head, path));
  if (header.shape.empty() || header.shape.size() > 2 || header.fortran_order) {
    return bad(path, "token ids must be a 1-d or 2-d array in C order");
  }
  const std::uint64_t rows = header.shape.size() == 2 ? header.shape[0] : 1;
  const std::uint64_t columns = header.shape.back();
  std::uint64_t elements = 0;
  LIB_TRY(const std::uint64_t file_bytes, file.size());
  const std::string& descr = header.descr;
  const bool known = descr.size() == 3 && (descr[0] == '<' || descr == "|u1" || descr == "|i1") &&
                     (descr[1] == 'i' || descr[1] == 'u') &&
                     std::string_view("1248").find(descr[2]) != std::string_view::npos;
  if (!known) {
    return bad(path, "its type is '" + descr.substr(0, 16) + "', not a little-endian integer type");
  }
  const auto width = static_cast<std::uint64_t>(descr[2] - '0');
  if (rows == 0 || columns == 0) {
    return bad(path, "it holds no tokens");
  }
  if (__builtin_mul_overflow(rows, columns, &elements) || elements > kElementsMax ||
      file_bytes - header.data_begin != elements * width) {
    return bad(path, "its shape does not fit its size");
  }
  std::vector<std::byte> raw(elements * width);
  LIB_TRY_VOID(read_exactly(file, path, header.data_begin, raw));
  NpyRows result;
  result.ids.resize(elements);
  const bool is_signed = descr[1] == 'i';
  switch (width) {
    case 1:
      LIB_TRY_VOID(is_signed ? convert<std::int8_t>(raw, path, result.ids)
                             : convert<std::uint8_t>(raw, path, result.ids));
      break;
    case 2:
      LIB_TRY_VOID(is_signed ? convert<std::int16_t>(raw, path, result.ids)
                             : convert<std::uint16_t>(raw, path, result.ids));
      break;
    case 4:
      LIB_TRY_VOID(is_signed ? convert<std::int32_t>(raw, path, result.ids)
                             : convert<std::uint32_t>(raw, path, result.ids));
      break;
    default:
      LIB_TRY_VOID(is_signed ? convert<std::int64_t>(raw, path, result.ids)
                             : convert<std::uint64_t>(raw, path, result.ids));
      break;
  }
  for (std::uint64_t row = 0; row <= rows; ++row) {
    result.offsets.push_back(static_cast<std::int64_t>(row * columns));
  }
  return result;
}

std::string npy_header_text(const std::string& descr, const std::vector<std::uint64_t>& shape) {
  std::string dict = "{'descr': '" + descr + "', 'fortran_order': False, 'shape': (";
  for (const std::uint64_t extent : shape) {
    dict += std::to_string(extent) + ", ";
  }
  dict += "), }";
  constexpr std::size_t kPrefix = 10;
  while ((kPrefix + dict.size() + 1) % 64 != 0) {
    dict += ' ';
  }
  dict += '\n';
  std::string text(kMagic);
  text += '\x01';
  text += '\0';
  text += static_cast<char>(dict.size() & 0xFFU);
  text += static_cast<char>(dict.size() >> 8U);
  return text + dict;
}

}  // namespace librarian::ingest
