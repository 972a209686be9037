#include <algorithm>
#include <array>
#include <cmath>
#include <cstdio>
#include <cstring>
#include <limits>

#include "activation_store/compare_rows.h"
#include "activation_store/skeleton_file.h"
#include "activation_store/store_reader.h"
#include "base/random.h"
#include "base/units.h"
#include "cli/commands.h"
#include "cli/exit_codes.h"
#include "cli/output.h"
#include "gpu_exec/layer_executor.h"
#include "ingest/npy.h"

namespace librarian::cli {
namespace {

using activation_store::ArrayRecord;
using activation_store::SampleRows;
using activation_store::StoredType;
using activation_store::StoreReader;

constexpr std::size_t kShownValues = 6;
constexpr std::uint64_t kShownTokens = 4;

struct Statistics {
  double mean = 0;
  double rms = 0;
  double min = 0;
  double max = 0;
};

std::string number(double value) {
  std::array<char, 32> text{};
  std::snprintf(text.data(), text.size(), "%.4g", value);
  return text.data();
}

std::vector<float> widen(const SampleRows& rows) {
  if (rows.type == StoredType::i32 || rows.type == StoredType::f8_e4m3) {
    std::vector<float> values(rows.tokens * rows.width);
    const std::uint64_t bytes = activation_store::element_bytes(rows.type);
    for (std::size_t i = 0; i < values.size(); ++i) {
      values[i] = activation_store::element_value(rows.type, rows.bytes.data() + i * bytes);
    }
    return values;
  }
  const gpu_exec::DType type = rows.type == StoredType::bf16  ? gpu_exec::DType::bf16
                               : rows.type == StoredType::f16 ? gpu_exec::DType::f16
                                                              : gpu_exec::DType::f32;
  std::vector<float> values(rows.tokens * rows.width);
  gpu_exec::convert_elements(type, rows.bytes, gpu_exec::DType::f32,
                             std::as_writable_bytes(std::span(values)));
  return values;
}

/// What the rows stand for: fp8 times the scale of its row.
Result<std::vector<float>> values_of(const StoreReader& store, const std::string& capture,
                                     std::uint64_t sample, const SampleRows& rows) {
  std::vector<float> values = widen(rows);
  if (rows.type == StoredType::f8_e4m3) {
    LIB_TRY(const activation_store::SampleRange range, store.locate(sample));
    LIB_TRY(const std::string array, store.resolve(store.parts()[range.part], capture));
    LIB_TRY(const SampleRows scales, store.sample(activation_store::scales_name(array), sample));
    const std::vector<float> factors = widen(scales);
    LIB_CHECK(factors.size() == rows.tokens);  // Both keep the same rows of the same part.
    for (std::size_t i = 0; i < values.size(); ++i) {
      values[i] *= factors[i / rows.width];
    }
  }
  return values;
}

Json shape_of(const SampleRows& rows, std::uint64_t tokens) {
  return rows.is_vector ? Json::array({tokens}) : Json::array({tokens, rows.width});
}

std::string shape_text(const Json& shape) {
  std::string text;
  for (const Json& extent : shape) {
    text += (text.empty() ? "[" : ", ") + extent.dump();
  }
  return text + "]";
}

Statistics statistics_of(const std::vector<float>& values) {
  Statistics result;
  result.min = std::numeric_limits<double>::infinity();
  result.max = -std::numeric_limits<double>::infinity();
  double squares = 0;
  for (const float value : values) {
    result.mean += static_cast<double>(value);
    squares += static_cast<double>(value) * static_cast<double>(value);
    result.min = std::min(result.min, static_cast<double>(value));
    result.max = std::max(result.max, static_cast<double>(value));
  }
  const auto count = static_cast<double>(values.size());
  result.mean /= count;
  result.rms = std::sqrt(squares / count);
  return result;
}

/// bf16 and fp8 have no .npy type: their values are widened to f32, which loses nothing.
Result<void> write_raw(const std::string& path, const SampleRows& rows,
                       const std::vector<float>& values) {
  const bool as_stored = rows.type == StoredType::f16 || rows.type == StoredType::i32;
  const std::vector<std::uint64_t> shape =
      rows.is_vector ? std::vector{rows.tokens} : std::vector{rows.tokens, rows.width};
  const std::string header = ingest::npy_header_text(rows.type == StoredType::f16   ? "<f2"
                                                     : rows.type == StoredType::i32 ? "<i4"
                                                                                    : "<f4",
                                                     shape);
  const std::span<const std::byte> body =
      as_stored ? std::span<const std::byte>(rows.bytes) : std::as_bytes(std::span(values));
  FileSystem& files = posix_file_system();
  const auto existing = files.info(path);
  if (existing && existing->kind != FileKind::file) {
    return Error(ErrorCode::invalid_argument,
                 "--raw " + path + ": is there and not a regular file; give another name");
  }
  const std::string temporary = path + ".partial-" + random_hex(8);
  {
    LIB_TRY(const std::unique_ptr<File> file, files.create(temporary));
    LIB_TRY_VOID(file->append(std::as_bytes(std::span(header))));
    LIB_TRY_VOID(file->append(body));
  }
  return files.rename(temporary, path);
}

Json array_to_json(const ArrayRecord& array) {
  return {{"name", array.name},
          {"shape", array.shape},
          {"dtype", array.dtype},
          {"raw_bytes", array.raw_bytes},
          {"stored_bytes", array.stored_bytes},
          {"nan", array.nan_count},
          {"inf", array.inf_count}};
}

/// Names and sizes of what lies in model/; null if it is not there or cannot be read.
Json skeleton_to_json(const Result<activation_store::SkeletonFile>& skeleton) {
  if (!skeleton) {
    return {};
  }
  Json files = Json::array();
  for (const activation_store::SkeletonEntry& entry : skeleton->entries) {
    files.push_back({{"path", entry.name}, {"size", entry.size}});
  }
  return files;
}

std::string skeleton_text(const Result<activation_store::SkeletonFile>& skeleton) {
  if (!skeleton) {
    return skeleton.error().code() == ErrorCode::not_found ? "none (no model/)"
                                                           : skeleton.error().message();
  }
  std::uint64_t bytes = 0;
  for (const activation_store::SkeletonEntry& entry : skeleton->entries) {
    bytes += entry.size;
  }
  return "model/, " + std::to_string(skeleton->entries.size()) + " files, " + format_bytes(bytes);
}

void inspect_store(const StoreReader& store, const std::string& directory, bool json) {
  std::vector<ArrayRecord> totals;  // One entry per array name, added up over the parts.
  std::uint64_t samples = 0;
  std::uint64_t tokens = 0;
  for (const auto& part : store.parts()) {
    samples += part.file.range.samples;
    tokens += part.file.range.tokens;
    for (const ArrayRecord& array : part.file.arrays) {
      auto total = std::find_if(totals.begin(), totals.end(),
                                [&](const ArrayRecord& entry) { return entry.name == array.name; });
      if (total == totals.end()) {
        totals.push_back(array);
        continue;
      }
      total->shape[0] += array.shape[0];
      total->raw_bytes += array.raw_bytes;
      total->stored_bytes += array.stored_bytes;
      total->nan_count += array.nan_count;
      total->inf_count += array.inf_count;
    }
  }
  const auto skeleton = activation_store::read_skeleton_file(posix_file_system(), directory);
  const char* numerics = store.numerics_uniform() ? "uniform" : "mixed";
  if (json) {
    Json arrays = Json::array();
    for (const ArrayRecord& array : totals) {
      arrays.push_back(array_to_json(array));
    }
    Json aliases = Json::object();
    Json groups = Json::object();
    if (!store.parts().empty()) {
      groups.update(Json(store.parts().front().file.groups));
      for (const auto& [name, array] : store.parts().front().file.aliases) {
        aliases[name] = array;
      }
    }
    print_event("inspect", {{"directory", directory},
                            {"parts_complete", store.parts().size()},
                            {"parts_total", store.parts_total()},
                            {"samples", samples},
                            {"samples_total", store.samples_total()},
                            {"tokens", tokens},
                            {"numerics", numerics},
                            {"identity", store.job().identity},
                            {"skeleton", skeleton_to_json(skeleton)},
                            {"arrays", arrays},
                            {"aliases", aliases},
                            {"groups", groups}});
    return;
  }
  print(directory + "\n");
  print(fact("parts", std::to_string(store.parts().size()) + " of " +
                          std::to_string(store.parts_total()) + " complete"));
  print(fact("samples", format_count(samples) + " of " + format_count(store.samples_total()) +
                            ", " + format_count(tokens) + " tokens"));
  const Json& identity = store.job().identity;
  if (identity.contains("model_type")) {
    print(fact("model", identity["model_type"].get<std::string>() + ", " +
                            identity["layers"].dump() + " layers, hidden size " +
                            identity["hidden_size"].dump()));
  }
  print(fact("skeleton", skeleton_text(skeleton)));
  print(fact("numerics", store.parts().empty() ? "-"
                                               : std::string(numerics) + ", " +
                                                     store.parts().front().file.device_kind));
  for (const ArrayRecord& array : totals) {
    std::string shape;
    for (const std::uint64_t extent : array.shape) {
      shape += (shape.empty() ? "[" : ", ") + std::to_string(extent);
    }
    const std::string broken = array.nan_count + array.inf_count == 0
                                   ? ""
                                   : ", " + format_count(array.nan_count) + " NaN, " +
                                         format_count(array.inf_count) + " infinite";
    print(fact(array.name, shape + "] " + array.dtype + ", " + format_bytes(array.stored_bytes) +
                               " for " + format_bytes(array.raw_bytes) + broken));
  }
  if (!store.parts().empty()) {
    for (const auto& [name, array] : store.parts().front().file.aliases) {
      print(fact(name, "is " + array));
    }
  }
}

Result<void> inspect_sample(const StoreReader& store, const Options& options) {
  LIB_TRY(const SampleRows rows, store.sample(options.capture, *options.sample));
  LIB_TRY(const std::vector<std::int32_t> ids, store.sample_tokens(*options.sample));
  LIB_TRY(const std::vector<float> values,
          values_of(store, options.capture, *options.sample, rows));
  const Statistics statistics = statistics_of(values);
  if (!options.raw_file.empty()) {
    LIB_TRY_VOID(write_raw(options.raw_file, rows, values));
  }
  if (options.json) {
    print_event("inspect_sample", {{"capture", options.capture},
                                   {"sample", *options.sample},
                                   {"shape", shape_of(rows, rows.tokens)},
                                   {"positions", rows.positions ? Json(*rows.positions) : Json()},
                                   {"dtype", activation_store::stored_type_name(rows.type)},
                                   {"mean", statistics.mean},
                                   {"rms", statistics.rms},
                                   {"min", statistics.min},
                                   {"max", statistics.max}});
    return {};
  }
  print(options.capture + ", sample " + std::to_string(*options.sample) + ": " +
        shape_text(shape_of(rows, rows.tokens)) + " " +
        activation_store::stored_type_name(rows.type) +
        (rows.positions ? " of " + std::to_string(ids.size()) + " tokens" : "") + "\n");
  if (rows.tokens == 0) {
    return {};
  }
  print(fact("mean, rms", number(statistics.mean) + ", " + number(statistics.rms)));
  print(fact("min, max", number(statistics.min) + ", " + number(statistics.max)));
  for (std::uint64_t token = 0; token < std::min(rows.tokens, kShownTokens); ++token) {
    std::string text;
    for (std::uint64_t i = 0; i < std::min<std::uint64_t>(rows.width, kShownValues); ++i) {
      text += number(static_cast<double>(values[token * rows.width + i])) + "  ";
    }
    const std::uint64_t position =
        rows.positions ? static_cast<std::uint64_t>((*rows.positions)[token]) : token;
    print(fact("[" + std::to_string(position) + "] id " + std::to_string(ids[position]),
               text + (rows.width > kShownValues ? "..." : "")));
  }
  if (rows.tokens > kShownTokens) {
    print(fact("...", std::to_string(rows.tokens - kShownTokens) + " more tokens"));
  }
  if (!options.raw_file.empty()) {
    print(fact("written", options.raw_file));
  }
  return {};
}

/// Shape and statistics of one capture over all complete parts, a sample at a time.
Result<void> inspect_capture(const StoreReader& store, const Options& options) {
  Statistics total;
  total.min = std::numeric_limits<double>::infinity();
  total.max = -std::numeric_limits<double>::infinity();
  double squares = 0;
  double count = 0;
  std::uint64_t tokens = 0;
  SampleRows last;
  for (const auto& part : store.parts()) {
    for (std::uint64_t i = 0; i < part.file.range.samples; ++i) {
      LIB_TRY(const SampleRows rows,
              store.sample(options.capture, part.file.range.first_sample + i));
      LIB_TRY(const std::vector<float> values,
              values_of(store, options.capture, part.file.range.first_sample + i, rows));
      last.type = rows.type;
      last.width = rows.width;
      last.is_vector = rows.is_vector;
      if (values.empty()) {
        continue;
      }
      const Statistics one = statistics_of(values);
      const auto n = static_cast<double>(values.size());
      total.mean += one.mean * n;
      squares += one.rms * one.rms * n;
      total.min = std::min(total.min, one.min);
      total.max = std::max(total.max, one.max);
      count += n;
      tokens += rows.tokens;
    }
  }
  if (count == 0) {
    return Error(ErrorCode::not_found,
                 options.directories[0] + (store.parts().empty()
                                               ? ": no complete part yet"
                                               : ": no row of it in the complete parts yet"));
  }
  total.mean /= count;
  total.rms = std::sqrt(squares / count);
  if (options.json) {
    print_event("inspect_capture", {{"capture", options.capture},
                                    {"shape", shape_of(last, tokens)},
                                    {"dtype", activation_store::stored_type_name(last.type)},
                                    {"mean", total.mean},
                                    {"rms", total.rms},
                                    {"min", total.min},
                                    {"max", total.max}});
    return {};
  }
  print(options.capture + ": " + shape_text(shape_of(last, tokens)) + " " +
        activation_store::stored_type_name(last.type) + "\n");
  print(fact("mean, rms", number(total.mean) + ", " + number(total.rms)));
  print(fact("min, max", number(total.min) + ", " + number(total.max)));
  return {};
}

}  // namespace

Result<int> run_inspect(const Options& options, const std::stop_token& /*stop*/) {
  LIB_TRY(const StoreReader store, StoreReader::open(posix_file_system(), options.directories[0]));
  if (options.sample) {
    LIB_TRY_VOID(inspect_sample(store, options));
  } else if (!options.capture.empty()) {
    LIB_TRY_VOID(inspect_capture(store, options));
  } else {
    inspect_store(store, options.directories[0], options.json);
  }
  return kExitDone;
}

}  // namespace librarian::cli
