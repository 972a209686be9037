#include "ingest/token_file.h"

#include <algorithm>
#include <cstring>
#include <limits>
#include <string_view>

#include "base/json.h"
#include "ingest/npy.h"
#include "weightmap/safetensors_header.h"

namespace librarian::ingest {
namespace {

constexpr std::uint64_t kTokensMax = 1ULL << 36U;

Error bad(const std::string& path, const std::string& reason) {
  return Error(ErrorCode::bad_input, path + ": " + reason);
}

template <typename T>
Result<std::vector<T>> read_vector(const File& file, const std::string& path,
                                   const weightmap::TensorInfo& tensor) {
  std::vector<T> values(tensor.bytes.size() / sizeof(T));
  LIB_TRY_VOID(
      read_exactly(file, path, tensor.bytes.begin, std::as_writable_bytes(std::span(values))));
  return values;
}

Result<TokenData> read_safetensors(const File& file, const std::string& path) {
  LIB_TRY(const std::uint64_t size, file.size());
  std::string prefix(std::min<std::uint64_t>(size, 64), '\0');
  LIB_TRY_VOID(read_exactly(file, path, 0, std::as_writable_bytes(std::span(prefix))));
  LIB_TRY(const std::uint64_t json_bytes, weightmap::header_json_bytes(prefix, size, path));
  std::string json(json_bytes, '\0');
  LIB_TRY_VOID(read_exactly(file, path, weightmap::kHeaderPrefixBytes,
                            std::as_writable_bytes(std::span(json))));
  weightmap::Metadata metadata;
  LIB_TRY(const std::vector<weightmap::TensorInfo> tensors,
          weightmap::parse_safetensors_header(json, size, path, &metadata));
  TokenData data;
  data.origin = {metadata["tokenizer_sha256"], metadata["chat_template_sha256"]};
  bool has_ids = false;
  for (const weightmap::TensorInfo& tensor : tensors) {
    const bool vector = tensor.shape.size() == 1;
    if (tensor.name == "input_ids" && tensor.dtype == "I32" && vector) {
      LIB_TRY(data.input_ids, read_vector<std::int32_t>(file, path, tensor));
      has_ids = true;
    } else if (tensor.name == "offsets" && tensor.dtype == "I64" && vector) {
      LIB_TRY(data.offsets, read_vector<std::int64_t>(file, path, tensor));
    } else if (tensor.name == "loss_mask" && tensor.dtype == "U8" && vector) {
      LIB_TRY(data.loss_mask, read_vector<std::uint8_t>(file, path, tensor));
    } else {
      return bad(path, "tensor '" + tensor.name + "' (" + tensor.dtype + ", " +
                           std::to_string(tensor.shape.size()) +
                           "-d) is not one of input_ids I32 [T], offsets I64 [N+1], loss_mask U8 "
                           "[T]");
    }
  }
  if (!has_ids || data.offsets.empty()) {
    return bad(path, std::string(has_ids ? "offsets" : "input_ids") + " is missing");
  }
  return data;
}

Result<void> append_row(const Json& row, const std::string& where, TokenData& data,
                        std::vector<std::uint8_t>& mask, bool& any_mask) {
  for (const auto& [key, value] : row.items()) {
    if (key != "input_ids" && key != "loss_mask" && key != "id") {
      return bad(where,
                 "the key '" + key.substr(0, 64) + "' is not one of input_ids, loss_mask, id");
    }
  }
  if (!row.contains("input_ids") || !row["input_ids"].is_array()) {
    return bad(where, "no list 'input_ids'");
  }
  for (const Json& id : row["input_ids"]) {
    if (!id.is_number_unsigned() ||
        id.get<std::uint64_t>() > std::numeric_limits<std::int32_t>::max()) {
      return bad(where, "input_ids has " + id.dump(-1, ' ', true).substr(0, 32) +
                            ", which is not a token id");
    }
    data.input_ids.push_back(static_cast<std::int32_t>(id.get<std::uint64_t>()));
  }
  const bool has_mask = row.contains("loss_mask");
  if (data.offsets.size() > 1 && has_mask != any_mask) {
    return bad(where, "some rows have a loss_mask and some do not");
  }
  any_mask = has_mask;
  if (has_mask) {
    const Json& list = row["loss_mask"];
    if (!list.is_array() || list.size() != row["input_ids"].size()) {
      return bad(where, "loss_mask is not a list as long as input_ids");
    }
    for (const Json& value : list) {
      if (!value.is_number_unsigned() || value.get<std::uint64_t>() > 1) {
        return bad(where, "loss_mask has " + value.dump(-1, ' ', true).substr(0, 32) +
                              ", which is not 0 or 1");
      }
      mask.push_back(static_cast<std::uint8_t>(value.get<std::uint64_t>()));
    }
  }
  data.offsets.push_back(static_cast<std::int64_t>(data.input_ids.size()));
  return {};
}

/// Reads line by line through a window, so the text is never in memory as a whole.
Result<TokenData> read_jsonl(const File& file, const std::string& path) {
  constexpr std::size_t kWindow = 1U << 20U;
  JsonLimits limits;
  limits.text_bytes_max = 256U << 20U;
  limits.values_max = 1U << 26U;
  TokenData data;
  data.offsets.push_back(0);
  std::vector<std::uint8_t> mask;
  bool any_mask = false;
  std::string pending;
  std::uint64_t offset = 0;
  std::uint64_t row = 0;
  for (bool at_end = false; !at_end;) {
    const std::size_t have = pending.size();
    pending.resize(have + kWindow);
    LIB_TRY(const std::size_t got,
            file.read_at(offset, std::as_writable_bytes(std::span(pending).subspan(have))));
    pending.resize(have + got);
    offset += got;
    at_end = got == 0;
    if (at_end && !pending.empty() && pending.back() != '\n') {
      pending += '\n';
    }
    std::size_t begin = 0;
    // What was there before has no line end, or it would be gone.
    for (std::size_t end = pending.find('\n', have); end != std::string::npos;
         end = pending.find('\n', begin)) {
      const std::string_view line(pending.data() + begin, end - begin);
      begin = end + 1;
      if (line.find_first_not_of(" \t\r") == std::string_view::npos) {
        continue;
      }
      const std::string where = path + ": row " + std::to_string(row++);
      LIB_TRY(const Json document, parse_json(line, where, limits));
      LIB_TRY_VOID(append_row(document, where, data, mask, any_mask));
    }
    pending.erase(0, begin);
    if (pending.size() > limits.text_bytes_max) {
      return bad(path, "row " + std::to_string(row) + " is longer than 256 MiB");
    }
  }
  if (any_mask) {
    data.loss_mask = std::move(mask);
  }
  return data;
}

/// Offsets that no arithmetic afterwards has to doubt.
Result<void> check_shape(const TokenData& data, const std::string& path) {
  if (data.input_ids.size() > kTokensMax) {
    return bad(path, "more than 2^36 tokens");
  }
  if (data.offsets.size() < 2) {
    return bad(path, "no samples");
  }
  if (data.offsets.front() != 0 ||
      data.offsets.back() != static_cast<std::int64_t>(data.input_ids.size())) {
    return bad(path, "offsets must begin at 0 and end at the number of tokens, " +
                         std::to_string(data.input_ids.size()));
  }
  for (std::size_t i = 0; i + 1 < data.offsets.size(); ++i) {
    if (data.offsets[i + 1] <= data.offsets[i]) {
      return bad(path, "sample " + std::to_string(i) + " is empty or its offsets go backwards");
    }
  }
  if (data.loss_mask) {
    if (data.loss_mask->size() != data.input_ids.size()) {
      return bad(path, "loss_mask has " + std::to_string(data.loss_mask->size()) + " values for " +
                           std::to_string(data.input_ids.size()) + " tokens");
    }
    const auto wrong = std::find_if(data.loss_mask->begin(), data.loss_mask->end(),
                                    [](std::uint8_t value) { return value > 1; });
    if (wrong != data.loss_mask->end()) {
      return bad(path, "loss_mask of token " + std::to_string(wrong - data.loss_mask->begin()) +
                           " is " + std::to_string(*wrong) + ", not 0 or 1");
    }
  }
  return {};
}

Result<void> check_ids(const TokenData& data, const std::string& path, std::uint32_t vocab_size) {
  for (std::size_t sample = 0; sample + 1 < data.offsets.size(); ++sample) {
    for (std::int64_t at = data.offsets[sample]; at < data.offsets[sample + 1]; ++at) {
      const std::int32_t id = data.input_ids[static_cast<std::size_t>(at)];
      if (id < 0 || static_cast<std::uint32_t>(id) >= vocab_size) {
        return bad(path, "sample " + std::to_string(sample) + " has token id " +
                             std::to_string(id) + " at position " +
                             std::to_string(at - data.offsets[sample]) +
                             ", outside the model's vocabulary of " + std::to_string(vocab_size));
      }
    }
  }
  return {};
}

void keep_first_samples(TokenData& data, std::uint64_t samples) {
  if (samples == 0 || samples >= data.samples()) {
    return;
  }
  data.offsets.resize(samples + 1);
  data.input_ids.resize(static_cast<std::size_t>(data.offsets.back()));
  if (data.loss_mask) {
    data.loss_mask->resize(data.input_ids.size());
  }
}

void truncate_samples(TokenData& data, std::uint64_t length_max) {
  if (length_max == 0) {
    return;
  }
  std::size_t to = 0;
  std::vector<std::int64_t> offsets{0};
  for (std::size_t sample = 0; sample + 1 < data.offsets.size(); ++sample) {
    const auto begin = static_cast<std::size_t>(data.offsets[sample]);
    auto length = static_cast<std::uint64_t>(data.offsets[sample + 1] - data.offsets[sample]);
    if (length > length_max) {
      length = length_max;
      ++data.truncated_samples;
    }
    for (std::size_t i = 0; i < length; ++i, ++to) {
      data.input_ids[to] = data.input_ids[begin + i];
      if (data.loss_mask) {
        (*data.loss_mask)[to] = (*data.loss_mask)[begin + i];
      }
    }
    offsets.push_back(static_cast<std::int64_t>(to));
  }
  data.offsets = std::move(offsets);
  data.input_ids.resize(to);
  if (data.loss_mask) {
    data.loss_mask->resize(to);
  }
}

}  // namespace

std::uint64_t TokenData::longest_sample() const {
  std::int64_t longest = 0;
  for (std::size_t i = 0; i + 1 < offsets.size(); ++i) {
    longest = std::max(longest, offsets[i + 1] - offsets[i]);
  }
  return static_cast<std::uint64_t>(longest);
}

std::uint64_t TokenData::memory_bytes() const {
  return input_ids.capacity() * sizeof(std::int32_t) + offsets.capacity() * sizeof(std::int64_t) +
         (loss_mask ? loss_mask->capacity() : 0);
}

Result<TokenData> read_token_file(FileSystem& files, const std::string& path,
                                  const TokenLimits& limits) {
  auto file = files.open(path);
  if (!file) {
    return Error(ErrorCode::bad_input, "--tokens: " + file.error().message());
  }
  TokenData data;
  if (path.ends_with(".safetensors")) {
    LIB_TRY(data, read_safetensors(**file, path));
  } else if (path.ends_with(".jsonl")) {
    LIB_TRY(data, read_jsonl(**file, path));
  } else if (path.ends_with(".npy")) {
    LIB_TRY(NpyRows rows, read_npy_ids(**file, path));
    data.input_ids = std::move(rows.ids);
    data.offsets = std::move(rows.offsets);
  } else {
    return Error(ErrorCode::invalid_argument,
                 "--tokens " + path + ": the name must end in .safetensors, .jsonl or .npy");
  }
  LIB_TRY_VOID(check_shape(data, path));
  keep_first_samples(data, limits.samples_max);
  truncate_samples(data, limits.max_length);
  LIB_TRY_VOID(check_ids(data, path, limits.vocab_size));
  data.input_ids.shrink_to_fit();
  return data;
}

}  // namespace librarian::ingest
