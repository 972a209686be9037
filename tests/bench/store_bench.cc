// Encode and decode speed of the store's chunk codec per core, and its ratio, beside plain zstd -1
// on the same bytes. Thread CPU time, so neighbours on the machine do not count.
//   store_bench [CHUNKS=64]
#define ZSTD_STATIC_LINKING_ONLY
#include <zstd.h>

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <ctime>
#include <functional>
#include <random>
#include <vector>

#include "activation_store/blosc_chunk.h"
#include "base/digest.h"

namespace librarian::activation_store {
namespace {

constexpr std::uint64_t kWidth = 4096;
constexpr int kPasses = 5;

double thread_seconds() {
  timespec now{};
  clock_gettime(CLOCK_THREAD_CPUTIME_ID, &now);
  return static_cast<double>(now.tv_sec) + static_cast<double>(now.tv_nsec) * 1e-9;
}

/// Median seconds of `kPasses` runs.
double median_seconds(const std::function<void()>& run) {
  std::vector<double> seconds;
  for (int pass = 0; pass < kPasses; ++pass) {
    const double begin = thread_seconds();
    run();
    seconds.push_back(thread_seconds() - begin);
  }
  std::sort(seconds.begin(), seconds.end());
  return seconds[kPasses / 2];
}

/// Normal values with log-normal channel scales and a few strong outlier channels, cut to `type`.
std::vector<std::byte> activations(const ArrayLayout& layout) {
  std::mt19937_64 random(1);
  std::normal_distribution<float> normal;
  std::vector<float> scale(layout.width);
  for (std::uint64_t column = 0; column < layout.width; ++column) {
    scale[column] = std::exp(0.5F * normal(random)) * (column % 170 == 7 ? 20.0F : 1.0F);
  }
  const std::uint64_t bytes = element_bytes(layout.type);
  std::vector<std::byte> rows(layout.rows * row_bytes(layout));
  for (std::uint64_t i = 0; i < layout.rows * layout.width; ++i) {
    const float value = normal(random) * scale[i % layout.width];
    std::uint32_t bits = 0;
    std::memcpy(&bits, &value, 4);
    std::memcpy(rows.data() + i * bytes, reinterpret_cast<const char*>(&bits) + (4 - bytes), bytes);
  }
  return rows;
}

void report(const char* name, std::uint64_t raw, std::uint64_t stored, double encode,
            double decode) {
  const auto bytes = static_cast<double>(raw);
  std::printf("%-28s ratio %.3f   encode %.2f GB/s   decode %.2f GB/s\n", name,
              bytes / static_cast<double>(stored), bytes / encode / 1e9, bytes / decode / 1e9);
}

void bench_codec(const char* name, const ArrayLayout& layout, const std::vector<std::byte>& rows) {
  const std::uint64_t chunk = chunk_bytes(layout);
  const std::uint64_t chunks = rows.size() / chunk;
  ChunkEncoder encoder(chunk);
  ChunkDecoder decoder;
  std::vector<std::vector<std::byte>> encoded(chunks);
  std::vector<std::byte> out(encoded_bytes_max(chunk));
  std::vector<std::uint64_t> sizes(chunks);
  const double encode = median_seconds([&] {
    for (std::uint64_t i = 0; i < chunks; ++i) {
      sizes[i] = encoder.encode(layout, std::span(rows).subspan(i * chunk, chunk), out);
    }
  });
  std::uint64_t stored = 0;
  for (std::uint64_t i = 0; i < chunks; ++i) {
    stored += encoder.encode(layout, std::span(rows).subspan(i * chunk, chunk), out);
    encoded[i].assign(out.begin(), out.begin() + static_cast<std::ptrdiff_t>(sizes[i]));
  }
  std::vector<std::byte> raw(chunk);
  const double decode = median_seconds([&] {
    for (const auto& one : encoded) {
      LIB_CHECK(static_cast<bool>(decoder.decode(layout, one, raw)));
    }
  });
  report(name, rows.size(), stored, encode, decode);
}

void bench_zstd(const char* name, int level, const ArrayLayout& layout,
                const std::vector<std::byte>& rows) {
  const std::uint64_t chunk = chunk_bytes(layout);
  ZSTD_CCtx* const compress = ZSTD_createCCtx();
  ZSTD_DCtx* const decompress = ZSTD_createDCtx();
  std::vector<std::vector<std::byte>> frames(rows.size() / chunk);
  std::vector<std::byte> out(ZSTD_compressBound(chunk));
  std::uint64_t stored = 0;
  const double encode = median_seconds([&] {
    stored = 0;
    for (std::uint64_t i = 0; i < frames.size(); ++i) {
      const std::size_t size = ZSTD_compressCCtx(compress, out.data(), out.size(),
                                                 rows.data() + i * chunk, chunk, level);
      frames[i].assign(out.begin(), out.begin() + static_cast<std::ptrdiff_t>(size));
      stored += size;
    }
  });
  std::vector<std::byte> raw(chunk);
  const double decode = median_seconds([&] {
    for (const auto& frame : frames) {
      LIB_CHECK(ZSTD_decompressDCtx(decompress, raw.data(), chunk, frame.data(), frame.size()) ==
                chunk);
    }
  });
  ZSTD_freeCCtx(compress);
  ZSTD_freeDCtx(decompress);
  report(name, rows.size(), stored, encode, decode);
}

void bench_type(StoredType type, std::uint64_t chunks) {
  ArrayLayout layout{1, kWidth, type, Codec::zstd, default_chunk_tokens(kWidth, type), 1};
  layout.rows = chunks * layout.chunk_tokens;
  layout.shard_tokens = layout.rows;
  const std::vector<std::byte> rows = activations(layout);
  std::printf("%s, %llu chunks of %llu KiB\n", stored_type_name(type),
              static_cast<unsigned long long>(chunks),
              static_cast<unsigned long long>(chunk_bytes(layout) >> 10U));
  bench_codec("  store, codec zstd", layout, rows);
  layout.codec = Codec::none;
  bench_codec("  store, codec none", layout, rows);
  bench_zstd("  zstd -1 (--fast=1)", -1, layout, rows);
  bench_zstd("  zstd level 1", 1, layout, rows);
  std::uint64_t non_finite = 0;
  const double count = median_seconds(
      [&] { non_finite += count_non_finite(type, rows).nan + xxh3_128(rows).low % 2; });
  std::printf("  NaN count + XXH3-128         %.2f GB/s\n",
              static_cast<double>(rows.size()) / count / 1e9);
}

}  // namespace
}  // namespace librarian::activation_store

int main(int argc, char** argv) {
  using namespace librarian::activation_store;
  const std::uint64_t chunks = argc > 1 ? std::strtoull(argv[1], nullptr, 10) : 64;
  std::printf("zstd %s\n", zstd_version().c_str());
  bench_type(StoredType::bf16, std::max<std::uint64_t>(chunks, 1));
  bench_type(StoredType::f32, std::max<std::uint64_t>(chunks, 1));
  return 0;
}
