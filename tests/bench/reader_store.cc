// Writes the stores that reader_bench.py reads: ragged samples of wide rows, or very many shards.
//   reader_store DIRECTORY MIB             about MIB MiB of bfloat16 rows of 4096, chunks of 1 MiB
//   reader_store --shards DIRECTORY COUNT  COUNT shards of one row each
#include <cstdio>
#include <cstdlib>
#include <string_view>

#include "tests/activation_store/store_fixtures.h"

namespace librarian::activation_store::testing {
namespace {

constexpr std::uint64_t kWidth = 4096;
constexpr std::uint64_t kSampleTokensMin = 64;
constexpr std::uint64_t kSampleTokensMax = 1536;

/// Samples of 64 to 1536 tokens, most of them short: 455 on average.
StoreOptions ragged_store(std::uint64_t mib) {
  StoreOptions options;
  options.width = kWidth;
  options.chunk_tokens = default_chunk_tokens(kWidth, options.type);
  options.shard_tokens = options.chunk_tokens * kDefaultChunksPerShard;
  options.part_tokens = 1U << 14U;
  options.arrays = {"blocks.0.resid_post"};
  options.aliases.clear();
  options.sample_lengths.clear();
  std::uint64_t tokens = (mib << 20U) / (kWidth * element_bytes(options.type));
  std::uint64_t state = 1;
  while (tokens > 0) {
    state = state * 6364136223846793005U + 1442695040888963407U;
    const double u = static_cast<double>(state >> 11U) / static_cast<double>(1ULL << 53U);
    const auto spread = static_cast<double>(kSampleTokensMax - kSampleTokensMin);
    const auto length = kSampleTokensMin + static_cast<std::uint64_t>(spread * u * u * 0.8);
    options.sample_lengths.push_back(std::min(tokens, length));
    tokens -= options.sample_lengths.back();
  }
  return options;
}

StoreOptions sharded_store(std::uint64_t shards) {
  StoreOptions options;
  options.width = 1;
  options.chunk_tokens = 1;
  options.shard_tokens = 1;
  options.part_tokens = shards;
  options.sample_lengths.assign(shards / 10, 10);
  options.arrays = {"blocks.0.resid_post"};
  options.aliases.clear();
  return options;
}

}  // namespace
}  // namespace librarian::activation_store::testing

int main(int argc, char** argv) {
  using namespace librarian::activation_store::testing;
  const bool shards = argc == 4 && std::string_view(argv[1]) == "--shards";
  if (argc != 3 && !shards) {
    std::fputs("usage: reader_store [--shards] DIRECTORY NUMBER\n", stderr);
    return 2;
  }
  const std::uint64_t number = std::strtoull(argv[argc - 1], nullptr, 10);
  const auto done = write_store(librarian::posix_file_system(), argv[argc - 2],
                                shards ? sharded_store(number) : ragged_store(number));
  if (!done) {
    std::fprintf(stderr, "%s\n", done.error().message().c_str());
    return 1;
  }
  return 0;
}
