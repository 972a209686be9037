// Writes arrays of every dtype, codec and shape, a whole small store, and beside each the raw rows,
// for readers that are not ours. cases.json lists them.
//   store_fixture EMPTY_DIRECTORY
//   store_fixture --golden DIRECTORY     only the store that is committed as golden_store,
//   store_fixture --golden-kinds DIRECTORY  or as golden_store_kinds
#include <cstdio>
#include <fstream>

#include "activation_store/blosc_chunk.h"
#include "base/json.h"
#include "tests/activation_store/store_fixtures.h"

namespace librarian::activation_store::testing {
namespace {

constexpr char kArray[] = "blocks.0.resid_post";

const char* kind_name(RowKind kind) {
  switch (kind) {
    case RowKind::activations:
      return "activations";
    case RowKind::noise:
      return "noise";
    case RowKind::special:
      return "special";
  }
  return "";
}

bool write_bytes(const std::string& path, std::span<const std::byte> bytes) {
  std::ofstream file(path, std::ios::binary);
  file.write(reinterpret_cast<const char*>(bytes.data()),
             static_cast<std::streamsize>(bytes.size()));
  return file.good();
}

Json describe(const std::string& array, const std::string& raw, const ArrayLayout& layout) {
  return {{"array", array},
          {"raw", raw},
          {"dtype", stored_type_name(layout.type)},
          {"shape", layout.shape()}};
}

Result<Json> write_case(const std::string& root, const ArrayLayout& layout, RowKind kind) {
  const std::string name = std::string(stored_type_name(layout.type)) +
                           (layout.codec == Codec::zstd ? "-zstd-" : "-none-") + kind_name(kind) +
                           "-" + std::to_string(layout.rows) + "x" + std::to_string(layout.width) +
                           "-chunk" + std::to_string(layout.chunk_tokens) + "-shard" +
                           std::to_string(layout.shard_tokens);
  FileSystem& files = posix_file_system();
  LIB_TRY_VOID(make_directories(files, root + "/" + name));
  const auto rows = make_rows(layout, kind, layout.rows + layout.width);
  LIB_TRY_VOID(write_array(files, root + "/" + name, kArray, layout, rows, 5));
  if (!write_bytes(root + "/" + name + ".bin", rows)) {
    return Error(ErrorCode::io, "cannot write the raw rows of " + name);
  }
  return describe(name + "/" + kArray, name + ".bin", layout);
}

Result<Json> write_all(const std::string& root) {
  Json cases = Json::array();
  for (const StoredType type :
       {StoredType::bf16, StoredType::f16, StoredType::f32, StoredType::f8_e4m3, StoredType::i32}) {
    for (const Codec codec : {Codec::none, Codec::zstd}) {
      for (const std::uint64_t width : {33U, 64U, 384U}) {
        for (const auto& [chunk, shard] : {std::pair{1U, 2U}, {2U, 8U}, {8U, 16U}, {16U, 16U}}) {
          const ArrayLayout layout{37, width, type, codec, chunk, shard};
          LIB_TRY(Json one, write_case(root, layout, RowKind::activations));
          cases.push_back(std::move(one));
        }
        for (const RowKind kind : {RowKind::noise, RowKind::special}) {
          LIB_TRY(Json one, write_case(root, {37, width, type, codec, 8, 16}, kind));
          cases.push_back(std::move(one));
        }
      }
      for (const auto& [chunk, shard] : {std::pair{1U, 2U}, {8U, 16U}, {512U, 1024U}}) {
        ArrayLayout vector{chunk == 512 ? 1100U : 37U, 1, type, codec, chunk, shard};
        vector.is_vector = true;
        LIB_TRY(Json one, write_case(root, vector, RowKind::activations));
        cases.push_back(std::move(one));
      }
    }
  }
  // One array with the chunks a real job has: 1 MiB, two Blosc blocks of several zstd blocks.
  for (const StoredType type : {StoredType::bf16, StoredType::f32}) {
    const std::uint64_t chunk = default_chunk_tokens(512, type);
    LIB_TRY(Json one, write_case(root, {2 * chunk + 100, 512, type, Codec::zstd, chunk, 2 * chunk},
                                 RowKind::activations));
    cases.push_back(std::move(one));
  }
  return cases;
}

StoreOptions whole_store_options() {
  StoreOptions options;
  options.every_kind = true;
  return options;
}

Result<Json> write_whole_store(const std::string& root) {
  const StoreOptions options = whole_store_options();
  LIB_TRY_VOID(write_store(posix_file_system(), root + "/store", options));
  Json parts = Json::array();
  for (const PartRange& range : partition(options)) {
    const std::string part = part_directory_name(parts.size());
    Json arrays = Json::array();
    for (const std::string& array : options.arrays) {
      const std::string raw = part + "." + array + ".bin";
      if (!write_bytes(root + "/" + raw,
                       make_sample_rows(options, array, range.first_sample, range.samples))) {
        return Error(ErrorCode::io, "cannot write " + raw);
      }
      arrays.push_back(describe(array, raw,
                                {range.tokens, options.width, options.type, options.codec,
                                 options.chunk_tokens, options.shard_tokens}));
    }
    for (const KindArray& kind : kind_arrays(options, range)) {
      const std::string raw = part + "." + kind.name + ".bin";
      if (!write_bytes(root + "/" + raw, kind.rows)) {
        return Error(ErrorCode::io, "cannot write " + raw);
      }
      arrays.push_back(describe(kind.name, raw, kind.layout));
      arrays.back()["rows"] = kind.attributes.rows;
    }
    parts.push_back({{"part", part},
                     {"first_sample", range.first_sample},
                     {"samples", range.samples},
                     {"tokens", range.tokens},
                     {"rows", kind_rows(options, range)},
                     {"arrays", std::move(arrays)}});
  }
  return parts;
}

Result<void> run(const std::string& root) {
  Json document;
  LIB_TRY(document["cases"], write_all(root));
  LIB_TRY(document["parts"], write_whole_store(root));
  const StoreOptions options;
  document["sample_lengths"] = options.sample_lengths;
  const std::string text = document.dump(1);
  if (!write_bytes(root + "/cases.json", std::as_bytes(std::span(text)))) {
    return Error(ErrorCode::io, "cannot write cases.json");
  }
  return {};
}

}  // namespace
}  // namespace librarian::activation_store::testing

int main(int argc, char** argv) {
  using namespace librarian::activation_store::testing;
  const std::string_view option = argc == 3 ? argv[1] : "";
  const bool kinds = option == "--golden-kinds";
  const bool golden = option == "--golden" || kinds;
  if (argc != 2 && !golden) {
    std::fputs("usage: store_fixture [--golden|--golden-kinds] EMPTY_DIRECTORY\n", stderr);
    return 2;
  }
  const auto done = golden ? write_store(librarian::posix_file_system(), argv[2],
                                         kinds ? golden_kinds_options() : golden_options())
                           : run(argv[1]);
  if (!done) {
    std::fprintf(stderr, "%s\n", done.error().message().c_str());
    return 1;
  }
  return 0;
}
