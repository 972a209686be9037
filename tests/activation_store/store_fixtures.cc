#include "tests/activation_store/store_fixtures.h"

#include <algorithm>
#include <cstring>

#include "activation_store/array_reader.h"
#include "activation_store/blosc_chunk.h"

namespace librarian::activation_store::testing {
namespace {

constexpr char kNonce[] = "0badcafe";

/// splitmix64: good enough bits, and the same on every machine.
std::uint64_t mix(std::uint64_t& state) {
  state += 0x9E3779B97F4A7C15U;
  std::uint64_t z = state;
  z = (z ^ (z >> 30U)) * 0xBF58476D1CE4E5B9U;
  z = (z ^ (z >> 27U)) * 0x94D049BB133111EBU;
  return z ^ (z >> 31U);
}

/// Sum of uniforms, near enough to normal, in exact arithmetic; every 29th column is an outlier.
float activation(std::uint64_t& state, std::uint64_t column) {
  const std::uint64_t bits = mix(state);
  float sum = -2.0F;
  for (unsigned k = 0; k < 4; ++k) {
    sum += static_cast<float>((bits >> (16U * k)) & 0xFFFFU) / 65536.0F;
  }
  return column % 29 == 3 ? sum * 24.0F : sum;
}

std::uint32_t to_bits(float value) {
  std::uint32_t bits = 0;
  std::memcpy(&bits, &value, sizeof bits);
  return bits;
}

/// Normal values only, mantissa cut off: any f16 bit pattern will do for a store.
std::uint16_t to_f16(float value) {
  const std::uint32_t bits = to_bits(value);
  const auto sign = static_cast<std::uint16_t>((bits >> 16U) & 0x8000U);
  const std::int32_t exponent = static_cast<std::int32_t>((bits >> 23U) & 0xFFU) - 112;
  if (exponent <= 0) {
    return sign;
  }
  return static_cast<std::uint16_t>(sign | (static_cast<std::uint32_t>(exponent) << 10U) |
                                    ((bits >> 13U) & 0x3FFU));
}

void store_element(StoredType type, float value, std::byte* at) {
  const std::uint32_t bits = to_bits(value);
  if (element_bytes(type) == 4) {
    std::memcpy(at, &bits, 4);
    return;
  }
  if (type == StoredType::f8_e4m3) {  // any bits will do: those of a float are as uneven
    *at = static_cast<std::byte>(to_f16(value) >> 8U);
    return;
  }
  const std::uint16_t half =
      type == StoredType::f16 ? to_f16(value) : static_cast<std::uint16_t>(bits >> 16U);
  std::memcpy(at, &half, 2);
}

std::uint64_t hash_name(const std::string& name) {
  std::uint64_t seed = 17;
  for (const char c : name) {
    seed = seed * 131 + static_cast<unsigned char>(c);
  }
  return seed;
}

ArrayLayout layout_of(const StoreOptions& options, std::uint64_t rows) {
  return {rows,          options.width,        options.type,
          options.codec, options.chunk_tokens, options.shard_tokens};
}

PartTokens make_tokens(const StoreOptions& options, const PartRange& range) {
  PartTokens tokens;
  tokens.offsets.push_back(0);
  tokens.loss_mask.emplace();
  for (std::uint64_t sample = range.first_sample; sample < range.first_sample + range.samples;
       ++sample) {
    for (std::uint64_t k = 0; k < options.sample_lengths[sample]; ++k) {
      tokens.input_ids.push_back(static_cast<std::int32_t>((sample * 1009 + k * 17) % 32000));
      tokens.loss_mask->push_back(k == 0 ? 0 : 1);
    }
    tokens.offsets.push_back(static_cast<std::int64_t>(tokens.input_ids.size()));
    tokens.sample_index.push_back(static_cast<std::int64_t>(sample));
  }
  return tokens;
}

void take_files(PartFile& part, ArrayRecord record) {
  part.files.insert(part.files.end(), record.files.begin(), record.files.end());
  record.files.clear();
  part.arrays.push_back(std::move(record));
}

Result<void> write_part(FileSystem& files, const std::string& directory,
                        const StoreOptions& options, const PartRange& range) {
  LIB_TRY_VOID(make_directories(files, directory));
  PartFile part;
  part.range = range;
  part.hidden_size = options.width;
  part.captures = options.arrays;
  for (const auto& [alias, array] : options.aliases) {
    part.captures.push_back(alias);
    part.aliases[alias] = array;
  }
  PartTokens part_tokens = make_tokens(options, range);
  std::vector<KindArray> kinds;
  if (options.every_kind) {
    part_tokens.rows = kind_rows(options, range);
    kinds = kind_arrays(options, range);
    part.captures.insert(part.captures.end(),
                         {"blocks.2.resid_post", "blocks.3.resid_post", "embed", "logits.topk"});
    for (const char* const member : {"ids", "log_prob", "logsumexp", "gold_log_prob"}) {
      part.groups["logits.topk"][member] = std::string("logits.topk.") + member;
    }
  }
  part.device_kind = "cpu-portable";
  part.zstd_version = options.zstd_version;
  part.verified = "none";
  LIB_TRY(auto tokens, write_part_tokens(files, directory, part_tokens, kNonce));
  for (ArrayRecord& record : tokens) {
    take_files(part, std::move(record));
  }
  for (const std::string& array : options.arrays) {
    LIB_TRY(ArrayRecord record,
            write_array(files, directory, array, layout_of(options, range.tokens),
                        make_sample_rows(options, array, range.first_sample, range.samples), 7));
    take_files(part, std::move(record));
  }
  for (const KindArray& kind : kinds) {
    LIB_TRY(ArrayRecord record,
            write_array(files, directory, kind.name, kind.layout, kind.rows, 3, kind.attributes));
    take_files(part, std::move(record));
  }
  return replace_file(files, directory + "/zarr.json", part_file_text(part));
}

}  // namespace

std::vector<std::byte> make_rows(const ArrayLayout& layout, RowKind kind, std::uint64_t seed) {
  static constexpr std::uint32_t kSpecial[] = {0x00000000, 0x80000000, 0x7F800000, 0xFF800000,
                                               0x7FC00000, 0x7F810000, 0xFFC00001, 0x00010000,
                                               0x3F800000, 0x00800000};
  const std::uint64_t bytes = element_bytes(layout.type);
  std::vector<std::byte> rows(layout.rows * layout.width * bytes);
  std::uint64_t state = seed;
  for (std::uint64_t i = 0; i < layout.rows * layout.width; ++i) {
    std::byte* const at = rows.data() + i * bytes;
    if (kind == RowKind::activations) {
      store_element(layout.type, activation(state, i % layout.width), at);
    } else if (kind == RowKind::noise) {
      const std::uint64_t bits = mix(state);
      std::memcpy(at, &bits, bytes);
    } else {
      const std::uint32_t bits = kSpecial[mix(state) % std::size(kSpecial)];
      // The upper half of each pattern is a special value of bf16; of f16 it is at least some bits.
      std::memcpy(at, reinterpret_cast<const char*>(&bits) + (4 - bytes), bytes);
    }
  }
  return rows;
}

Result<ArrayRecord> write_array(FileSystem& files, const std::string& directory,
                                const std::string& name, const ArrayLayout& layout,
                                const std::vector<std::byte>& rows, std::uint64_t append_rows,
                                const ArrayAttributes& attributes) {
  EncodePool pool(real_clock(), {.threads = 2, .slots = 3, .chunk_bytes_max = chunk_bytes(layout)});
  LIB_TRY(ArrayWriter writer,
          ArrayWriter::create(files, pool, directory, name, layout, kNonce, attributes));
  const std::uint64_t row = row_bytes(layout);
  const std::uint64_t step = append_rows == 0 ? layout.rows : append_rows;
  for (std::uint64_t begin = 0; begin < layout.rows; begin += step) {
    const std::uint64_t count = std::min(step, layout.rows - begin);
    LIB_TRY_VOID(writer.append(std::span(rows).subspan(begin * row, count * row), {}));
  }
  LIB_TRY(ArrayRecord record, writer.finish({}));
  LIB_TRY_VOID(writer.publish());
  return record;
}

Result<std::vector<std::byte>> read_array(FileSystem& files, const std::string& directory) {
  LIB_TRY(const ArrayReader reader, ArrayReader::open(files, directory));
  std::vector<std::byte> rows(reader.layout().rows * row_bytes(reader.layout()));
  LIB_TRY_VOID(reader.read_rows(0, reader.layout().rows, rows));
  return rows;
}

std::vector<std::byte> make_sample_rows(const StoreOptions& options, const std::string& array,
                                        std::uint64_t first_sample, std::uint64_t samples) {
  std::vector<std::byte> rows;
  for (std::uint64_t sample = first_sample; sample < first_sample + samples; ++sample) {
    const auto some = make_rows(layout_of(options, options.sample_lengths[sample]),
                                RowKind::activations, hash_name(array) + sample);
    rows.insert(rows.end(), some.begin(), some.end());
    if (options.tamper_xor != 0 && sample == options.tamper_sample) {
      const std::uint64_t row = options.width * element_bytes(options.type);
      const std::uint64_t tokens_after = options.sample_lengths[sample] - options.tamper_position;
      rows[rows.size() - tokens_after * row] ^= static_cast<std::byte>(options.tamper_xor);
    }
  }
  return rows;
}

StoreOptions golden_options() {
  StoreOptions options;
  options.zstd_version = zstd_version();
  return options;
}

StoreOptions golden_kinds_options() {
  StoreOptions options = golden_options();
  options.every_kind = true;
  options.width = 24;
  return options;
}

std::map<std::string, std::vector<std::int64_t>> kind_rows(const StoreOptions& options,
                                                           const PartRange& range) {
  std::map<std::string, std::vector<std::int64_t>> kept;
  std::int64_t row = 0;
  kept["rows_10_11"];  // so that it is there where no sample is long enough
  for (std::uint64_t sample = range.first_sample; sample < range.first_sample + range.samples;
       ++sample) {
    const std::uint64_t length = options.sample_lengths[sample];
    for (std::uint64_t k = 0; k < length; ++k, ++row) {
      if (k > 0) {  // as make_tokens() masks
        kept["rows_loss"].push_back(row);
      }
      if (k + 1 < length) {
        kept["rows_loss_next"].push_back(row);
      }
      if (k == 10 || k == 11) {
        kept["rows_10_11"].push_back(row);
      }
    }
  }
  return kept;
}

std::vector<KindArray> kind_arrays(const StoreOptions& options, const PartRange& range) {
  const auto kept = kind_rows(options, range);
  std::vector<KindArray> arrays;
  const auto add = [&](const char* name, const char* rows, StoredType type, std::uint64_t width,
                       RowKind kind, std::uint32_t mantissa_bits = 0) {
    KindArray array;
    array.name = name;
    array.layout = layout_of(options, rows[0] == 0 ? range.tokens : kept.at(rows).size());
    array.layout.type = type;
    array.layout.is_vector = width == 0;
    array.layout.width = std::max<std::uint64_t>(width, 1);
    array.attributes = {rows[0] == 0 ? "" : std::string("tokens/") + rows, mantissa_bits};
    array.rows = make_rows(array.layout, kind, hash_name(name) + range.first_sample);
    arrays.push_back(std::move(array));
  };
  const std::uint64_t width = options.width;
  add("blocks.2.resid_post", "rows_loss", StoredType::f8_e4m3, width, RowKind::noise);
  add("blocks.2.resid_post.scales", "rows_loss", StoredType::f32, 0, RowKind::activations);
  add("blocks.3.resid_post", "", StoredType::bf16, width, RowKind::activations, 5);
  add("embed", "rows_10_11", StoredType::bf16, width, RowKind::activations);
  add("logits.topk.ids", "rows_loss_next", StoredType::i32, 4, RowKind::noise);
  add("logits.topk.log_prob", "rows_loss_next", StoredType::f16, 4, RowKind::activations);
  add("logits.topk.logsumexp", "rows_loss_next", StoredType::f32, 0, RowKind::activations);
  add("logits.topk.gold_log_prob", "rows_loss_next", StoredType::f32, 0, RowKind::special);
  return arrays;
}

std::vector<PartRange> partition(const StoreOptions& options) {
  std::vector<PartRange> parts;
  for (std::uint64_t sample = 0; sample < options.sample_lengths.size(); ++sample) {
    const std::uint64_t tokens = options.sample_lengths[sample];
    if (parts.empty() || parts.back().tokens + tokens > options.part_tokens) {
      parts.push_back({sample, 0, 0});
    }
    ++parts.back().samples;
    parts.back().tokens += tokens;
  }
  return parts;
}

Result<void> write_store(FileSystem& files, const std::string& directory,
                         const StoreOptions& options) {
  LIB_TRY_VOID(make_directories(files, directory));
  JobFile job;
  job.identity = {{"model", "fixture"}, {"dtype", stored_type_name(options.type)}};
  job.identity_digest = sha256_hex(job.identity.dump());
  job.parts = partition(options);
  LIB_TRY_VOID(replace_file(files, directory + "/job.json", job_file_text(job)));
  LIB_TRY_VOID(replace_file(files, directory + "/zarr.json", store_group_text(job.identity)));
  for (std::uint64_t i = 0; i < std::min<std::uint64_t>(job.parts.size(), options.parts_to_write);
       ++i) {
    LIB_TRY_VOID(
        write_part(files, directory + "/" + part_directory_name(i), options, job.parts[i]));
  }
  return {};
}

}  // namespace librarian::activation_store::testing
