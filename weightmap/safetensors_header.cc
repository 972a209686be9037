#include "weightmap/safetensors_header.h"

#include <algorithm>
#include <array>
#include <cstring>
#include <nlohmann/json.hpp>
#include <unordered_set>
#include <utility>

namespace librarian::weightmap {
namespace {

struct DtypeBits {
  std::string_view name;
  std::uint32_t bits;
};
constexpr std::array<DtypeBits, 20> kDtypes{
    {{"BOOL", 8},    {"U8", 8},   {"I8", 8},      {"F8_E4M3", 8}, {"F8_E5M2", 8},
     {"F8_E8M0", 8}, {"F4", 4},   {"F6_E2M3", 6}, {"F6_E3M2", 6}, {"I16", 16},
     {"U16", 16},    {"F16", 16}, {"BF16", 16},   {"I32", 32},    {"U32", 32},
     {"F32", 32},    {"I64", 64}, {"U64", 64},    {"F64", 64},    {"C64", 64}}};

using Sax = nlohmann::json_sax<nlohmann::json>;

/// Reads `{name: {"dtype": s, "shape": [n...], "data_offsets": [b, e]}, "__metadata__": {s: s}}`
/// straight into TensorInfo: no document in between, so a hostile header costs what it holds.
class HeaderReader final : public Sax {
 public:
  explicit HeaderReader(Metadata* metadata) : metadata_(metadata) {}

  bool null() override { return fail("null where none belongs"); }
  bool boolean(bool /*value*/) override { return fail("true or false where none belongs"); }
  bool number_integer(number_integer_t /*value*/) override { return fail("a negative number"); }
  bool number_float(number_float_t /*value*/, const string_t& text) override {
    return fail("the number " + text + " where an integer belongs");
  }
  bool binary(binary_t& /*value*/) override { return fail("binary data"); }

  bool number_unsigned(number_unsigned_t value) override {
    if (place_ == Place::shape && tensor_.shape.size() < kTensorRankMax) {
      tensor_.shape.push_back(value);
      return true;
    }
    if (place_ == Place::offsets && offsets_.size() < 2) {
      offsets_.push_back(value);
      return true;
    }
    return fail(place_ == Place::shape ? "more than 8 dimensions" : "a number out of place");
  }

  bool string(string_t& value) override {
    if (place_ == Place::metadata) {
      if (metadata_ != nullptr) {
        (*metadata_)[metadata_key_] = value;
      }
      return true;
    }
    if (place_ != Place::tensor || field_ != Field::dtype) {
      return fail("a string out of place");
    }
    if (dtype_bits(value) == 0) {
      return fail("the unknown dtype '" + value.substr(0, 32) + "'");
    }
    tensor_.dtype = value;
    return true;
  }

  bool start_object(std::size_t /*elements*/) override {
    switch (place_) {
      case Place::start:
        place_ = Place::top;
        return true;
      case Place::top:
        place_ = tensor_.name == "__metadata__" ? Place::metadata : Place::tensor;
        metadata_keys_.clear();
        return true;
      default:
        return fail("an object out of place");
    }
  }

  bool end_object() override {
    if (place_ == Place::metadata) {
      place_ = Place::top;
      return true;
    }
    if (place_ == Place::tensor) {
      place_ = Place::top;
      return finish_tensor();
    }
    return true;
  }

  bool start_array(std::size_t /*elements*/) override {
    if (place_ == Place::tensor && field_ == Field::shape) {
      place_ = Place::shape;
      return true;
    }
    if (place_ == Place::tensor && field_ == Field::offsets) {
      place_ = Place::offsets;
      return true;
    }
    return fail("an array out of place");
  }
  bool end_array() override {
    place_ = Place::tensor;
    return true;
  }

  bool key(string_t& value) override {
    if (place_ == Place::top) {
      return start_tensor(value);
    }
    if (place_ == Place::metadata) {
      metadata_key_ = value;
      // Bounded like the tensors.
      return metadata_keys_.size() < kTensorsPerFileMax && metadata_keys_.insert(value).second
                 ? true
                 : fail("duplicate or too many __metadata__ keys");
    }
    return start_field(value);
  }

  bool parse_error(std::size_t position, const std::string& /*token*/,
                   const nlohmann::detail::exception& /*error*/) override {
    return fail("a syntax error at byte " + std::to_string(position));
  }

  const std::string& failure() const { return failure_; }
  std::vector<TensorInfo> take() { return std::move(tensors_); }

 private:
  enum class Place : std::uint8_t { start, top, metadata, tensor, shape, offsets };
  enum class Field : std::uint8_t { none, dtype, shape, offsets };

  bool fail(std::string reason) {
    failure_ = tensor_.name.empty() ? std::move(reason)
                                    : std::move(reason) + " in tensor '" + tensor_.name + "'";
    return false;
  }

  bool start_tensor(const std::string& name) {
    tensor_ = {};
    offsets_.clear();
    seen_fields_ = 0;
    field_ = Field::none;
    if (name.empty() || name.size() > kTensorNameBytesMax ||
        !std::all_of(name.begin(), name.end(), [](char c) { return c > ' ' && c <= '~'; })) {
      return fail("a tensor name that is empty, too long or not printable");
    }
    tensor_.name = name;
    if (names_.size() >= kTensorsPerFileMax) {
      return fail("more than " + std::to_string(kTensorsPerFileMax) + " tensors");
    }
    return names_.insert(name).second ? true : fail("a second entry");
  }

  bool start_field(const std::string& name) {
    field_ = name == "dtype"          ? Field::dtype
             : name == "shape"        ? Field::shape
             : name == "data_offsets" ? Field::offsets
                                      : Field::none;
    const unsigned bit = 1U << static_cast<unsigned>(field_);
    if (field_ == Field::none || (seen_fields_ & bit) != 0) {
      return fail("the unknown or repeated field '" + name.substr(0, 32) + "'");
    }
    seen_fields_ |= bit;
    return true;
  }

  bool finish_tensor() {
    if (tensor_.dtype.empty() || offsets_.size() != 2 ||
        (seen_fields_ & (1U << static_cast<unsigned>(Field::shape))) == 0) {
      return fail("dtype, shape or data_offsets missing");
    }
    std::uint64_t bits = dtype_bits(tensor_.dtype);
    for (const std::uint64_t extent : tensor_.shape) {
      if (__builtin_mul_overflow(bits, extent, &bits)) {
        return fail("a shape whose size overflows");
      }
    }
    if (offsets_[0] > offsets_[1] || bits % 8 != 0 || offsets_[1] - offsets_[0] != bits / 8) {
      return fail("data_offsets that do not match dtype and shape");
    }
    tensor_.bytes = {offsets_[0], offsets_[1]};
    tensors_.push_back(std::move(tensor_));
    tensor_ = {};
    return true;
  }

  Place place_ = Place::start;
  Field field_ = Field::none;
  unsigned seen_fields_ = 0;
  TensorInfo tensor_;
  std::vector<std::uint64_t> offsets_;
  std::vector<TensorInfo> tensors_;
  std::unordered_set<std::string> names_;
  std::unordered_set<std::string> metadata_keys_;
  std::string metadata_key_;
  Metadata* const metadata_;
  std::string failure_;
};

Error bad(const std::string& what, const std::string& reason) {
  return Error(ErrorCode::bad_input, what + ": not a usable safetensors file: " + reason);
}

}  // namespace

std::uint32_t dtype_bits(std::string_view dtype) {
  const auto* found = std::find_if(kDtypes.begin(), kDtypes.end(),
                                   [&](const DtypeBits& entry) { return entry.name == dtype; });
  return found == kDtypes.end() ? 0 : found->bits;
}

Result<std::uint64_t> header_json_bytes(std::string_view first_bytes, std::uint64_t file_bytes,
                                        const std::string& what) {
  if (first_bytes.size() < kHeaderPrefixBytes || file_bytes < kHeaderPrefixBytes + 2) {
    return bad(what, "only " + std::to_string(file_bytes) + " bytes long");
  }
  if (first_bytes.starts_with("version https://git-lfs")) {
    return bad(what, "it is a Git LFS pointer; fetch the real file (git lfs pull)");
  }
  std::uint64_t length = 0;
  std::memcpy(&length, first_bytes.data(), sizeof length);
  // The length came from a stranger: bound it before it becomes an allocation.
  if (length > kHeaderBytesMax || length > file_bytes - kHeaderPrefixBytes || length < 2) {
    if (first_bytes.front() == '<') {
      return bad(what, "it begins like a web page; check the address");
    }
    return bad(what, "its header claims " + std::to_string(length) + " bytes in a file of " +
                         std::to_string(file_bytes));
  }
  return length;
}

Result<std::vector<TensorInfo>> parse_safetensors_header(std::string_view json,
                                                         std::uint64_t file_bytes,
                                                         const std::string& what,
                                                         Metadata* metadata) {
  // The format pads with spaces only; nlohmann would also take tabs, newlines and a BOM.
  const std::size_t last = json.find_last_not_of(' ');
  if (json.empty() || json.front() != '{' || last == std::string_view::npos || json[last] != '}' ||
      json.find('\0') != std::string_view::npos) {
    return bad(what, "the header is not one JSON object padded with spaces");
  }
  HeaderReader reader(metadata);
  if (!nlohmann::json::sax_parse(json.begin(), json.begin() + static_cast<std::ptrdiff_t>(last) + 1,
                                 &reader)) {
    return bad(what, reader.failure());
  }
  std::vector<TensorInfo> tensors = reader.take();
  std::sort(tensors.begin(), tensors.end(), [](const TensorInfo& a, const TensorInfo& b) {
    return std::pair(a.bytes.begin, a.bytes.end) < std::pair(b.bytes.begin, b.bytes.end);
  });
  const std::uint64_t data_begin = kHeaderPrefixBytes + json.size();
  const std::uint64_t data_bytes = file_bytes - data_begin;
  std::uint64_t at = 0;
  for (TensorInfo& tensor : tensors) {
    if (tensor.bytes.begin != at || tensor.bytes.end > data_bytes) {
      return bad(what, "tensor '" + tensor.name + "' lies at bytes " +
                           std::to_string(tensor.bytes.begin) + " to " +
                           std::to_string(tensor.bytes.end) + " of " + std::to_string(data_bytes) +
                           ", where the tensor before it ends at " + std::to_string(at));
    }
    at = tensor.bytes.end;
    tensor.bytes.begin += data_begin;
    tensor.bytes.end += data_begin;
  }
  if (at != data_bytes) {
    return bad(what, "its tensors end at byte " + std::to_string(at) + " of " +
                         std::to_string(data_bytes) + " bytes of data");
  }
  return tensors;
}

}  // namespace librarian::weightmap
