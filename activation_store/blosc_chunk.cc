#include "activation_store/blosc_chunk.h"

#define ZSTD_STATIC_LINKING_ONLY  // contexts inside our own, counted memory
#include <zstd.h>
#include <zstd_errors.h>

#include <algorithm>
#include <cstring>

#include "activation_store/little_endian.h"
#include "base/digest.h"

namespace librarian::activation_store {
namespace {

constexpr std::uint64_t kHeaderBytes = 16;
constexpr std::uint64_t kChecksumBytes = 4;
constexpr std::uint64_t kBlocksMax = 2;
constexpr std::uint64_t kPlanesMax = 4;
constexpr unsigned char kBloscVersion = 2;
constexpr unsigned char kFormatVersion = 1;
constexpr unsigned char kFlagShuffle = 0x01;
constexpr unsigned char kFlagOneStream = 0x10;
constexpr unsigned char kFlagZstd = 4U << 5U;
// c-blosc keeps the planes of a block in one stream when they would be shorter than this
// (MIN_BUFFERSIZE in c-blosc 1.21 blosc.c); readers derive it, so it is part of the format.
constexpr std::uint64_t kSplitElementsMin = 128;

struct Geometry {
  std::uint64_t chunk_bytes;
  std::uint64_t block_bytes;
  std::uint64_t block_count;
  std::uint64_t type_bytes;
  std::uint64_t stream_count;  // per block
  std::uint64_t stream_bytes;  // raw
};

Geometry geometry_of(const ArrayLayout& layout) {
  Geometry g{};
  g.chunk_bytes = chunk_bytes(layout);
  g.block_bytes = blosc_block_bytes(layout);
  g.block_count = g.chunk_bytes / g.block_bytes;
  g.type_bytes = element_bytes(layout.type);
  g.stream_count = g.block_bytes / g.type_bytes >= kSplitElementsMin ? g.type_bytes : 1;
  g.stream_bytes = g.block_bytes / g.stream_count;
  return g;
}

unsigned char flags_of(const Geometry& g) {
  return static_cast<unsigned char>(kFlagShuffle | kFlagZstd |
                                    (g.stream_count == 1 ? kFlagOneStream : 0U));
}

// Byte loops over a fixed element size: the compiler turns them into shuffles.
template <std::size_t kTypeBytes>
void split_planes(const unsigned char* __restrict from, std::size_t elements,
                  unsigned char* __restrict to) {
  for (std::size_t plane = 0; plane < kTypeBytes; ++plane) {
    unsigned char* const out = to + plane * elements;
    for (std::size_t i = 0; i < elements; ++i) {
      out[i] = from[i * kTypeBytes + plane];
    }
  }
}

void split_planes_2(const unsigned char* __restrict from, std::size_t elements,
                    unsigned char* __restrict low, unsigned char* __restrict high) {
  for (std::size_t i = 0; i < elements; ++i) {
    low[i] = from[2 * i];
    high[i] = from[2 * i + 1];
  }
}

// Whole elements are put together in registers: as bytes, GCC 12 leaves the loops unvectorised.
[[gnu::noinline]] void join_planes_2(const unsigned char* __restrict low,
                                     const unsigned char* __restrict high, std::size_t elements,
                                     std::byte* __restrict to) {
  for (std::size_t i = 0; i < elements; ++i) {
    store_le(to + 2 * i, static_cast<std::uint16_t>(low[i] | (high[i] << 8U)));
  }
}

[[gnu::noinline]] void join_planes_4(const unsigned char* __restrict p0,
                                     const unsigned char* __restrict p1,
                                     const unsigned char* __restrict p2,
                                     const unsigned char* __restrict p3, std::size_t elements,
                                     std::byte* __restrict to) {
  for (std::size_t i = 0; i < elements; ++i) {
    const auto low = static_cast<std::uint32_t>(p0[i] | (p1[i] << 8U));
    const auto high = static_cast<std::uint32_t>(p2[i] | (p3[i] << 8U));
    store_le(to + 4 * i, low | (high << 16U));
  }
}

/// Elements of `type_bytes` from as many planes. Rows go to memory that is seldom in the cache, and
/// each of its lines is fetched before it is written: asked for early, that costs half.
void join_planes(const unsigned char* const* plane, std::uint64_t type_bytes,
                 std::uint64_t elements, std::byte* to) {
  constexpr std::uint64_t kStepBytes = 1024;
  constexpr std::uint64_t kAheadBytes = 2048;
  constexpr std::uint64_t kLineBytes = 64;
  const std::uint64_t bytes = elements * type_bytes;
  for (std::uint64_t at = 0; at < bytes; at += kStepBytes) {
    for (std::uint64_t line = at + kAheadBytes;
         line < std::min(bytes, at + kAheadBytes + kStepBytes); line += kLineBytes) {
      __builtin_prefetch(to + line, 1);
    }
    const std::uint64_t i = at / type_bytes;
    const std::uint64_t count = std::min(kStepBytes, bytes - at) / type_bytes;
    if (type_bytes == 1) {
      std::memcpy(to + at, plane[0] + i, count);
    } else if (type_bytes == 2) {
      join_planes_2(plane[0] + i, plane[1] + i, count, to + at);
    } else {
      join_planes_4(plane[0] + i, plane[1] + i, plane[2] + i, plane[3] + i, count, to + at);
    }
  }
}

const unsigned char* bytes_of(const std::byte* at) {
  return reinterpret_cast<const unsigned char*>(at);
}
unsigned char* bytes_of(std::byte* at) { return reinterpret_cast<unsigned char*>(at); }

/// The fast strategy with a table of 64 entries finds next to no match: what is left is zstd's
/// entropy coder, which on byte planes of activations is both smaller and faster than matching.
template <typename Target, typename Set>
void set_parameters(Target* target, Set set) {
  const std::pair<ZSTD_cParameter, int> values[] = {
      {ZSTD_c_compressionLevel, 1}, {ZSTD_c_strategy, ZSTD_fast}, {ZSTD_c_minMatch, 7},
      {ZSTD_c_hashLog, 6},          {ZSTD_c_checksumFlag, 0},     {ZSTD_c_contentSizeFlag, 1}};
  for (const auto& [parameter, value] : values) {
    LIB_CHECK(ZSTD_isError(set(target, parameter, value)) == 0U);
  }
}

std::uint64_t zstd_workspace_bytes() {
  static const std::uint64_t bytes = [] {
    ZSTD_CCtx_params* const parameters = ZSTD_createCCtxParams();
    LIB_CHECK(parameters != nullptr);
    set_parameters(parameters, ZSTD_CCtxParams_setParameter);
    const std::size_t estimate = ZSTD_estimateCCtxSize_usingCCtxParams(parameters);
    ZSTD_freeCCtxParams(parameters);
    LIB_CHECK(ZSTD_isError(estimate) == 0U);
    return static_cast<std::uint64_t>((estimate + 7) / 8 * 8);
  }();
  return bytes;
}

Error damaged(const std::string& reason) { return Error(ErrorCode::corrupt, reason); }

}  // namespace

std::uint64_t blosc_block_bytes(const ArrayLayout& layout) {
  const std::uint64_t rows =
      layout.chunk_tokens % 2 == 0 ? layout.chunk_tokens / 2 : layout.chunk_tokens;
  return rows * row_bytes(layout);
}

std::uint64_t encoded_bytes_max(std::uint64_t chunk_bytes) {
  return chunk_bytes + kHeaderBytes + kBlocksMax * (4 + kPlanesMax * 4) + kChecksumBytes;
}

std::string zstd_version() { return ZSTD_versionString(); }

// The context lives inside one allocation of known size (zstd's static workspace), so what the
// planner counts is what is used.
struct ChunkEncoder::ZstdState {
  ZSTD_CCtx* context;
  std::unique_ptr<std::uint64_t[]> workspace;
};

void ChunkEncoder::ZstdDeleter::operator()(ZstdState* state) const noexcept { delete state; }

std::uint64_t ChunkEncoder::memory_bytes(std::uint64_t chunk_bytes_max) {
  return chunk_bytes_max + zstd_workspace_bytes() + sizeof(ZstdState);
}

ChunkEncoder::ChunkEncoder(std::uint64_t chunk_bytes_max)
    : planes_(chunk_bytes_max), zstd_(new ZstdState{}) {
  const std::uint64_t bytes = zstd_workspace_bytes();
  zstd_->workspace = std::make_unique<std::uint64_t[]>(bytes / 8);
  zstd_->context = ZSTD_initStaticCCtx(zstd_->workspace.get(), bytes);
  LIB_CHECK(zstd_->context != nullptr);
  set_parameters(zstd_->context, ZSTD_CCtx_setParameter);
}

std::uint64_t ChunkEncoder::encode(const ArrayLayout& layout, std::span<const std::byte> raw,
                                   std::span<std::byte> out) {
  LIB_CHECK(raw.size() == chunk_bytes(layout) && out.size() >= encoded_bytes_max(raw.size()));
  std::uint64_t size = raw.size();
  if (layout.codec == Codec::none) {
    std::memcpy(out.data(), raw.data(), raw.size());
  } else {
    size = encode_blosc(layout, raw, out);
  }
  store_le(out.data() + size, crc32c(out.first(size)));
  return size + kChecksumBytes;
}

std::uint64_t ChunkEncoder::encode_blosc(const ArrayLayout& layout, std::span<const std::byte> raw,
                                         std::span<std::byte> out) {
  const Geometry g = geometry_of(layout);
  LIB_CHECK(g.block_bytes <= planes_.size());
  std::uint64_t at = kHeaderBytes + 4 * g.block_count;
  for (std::uint64_t block = 0; block < g.block_count; ++block) {
    const unsigned char* const from = bytes_of(raw.data() + block * g.block_bytes);
    const std::uint64_t elements = g.block_bytes / g.type_bytes;
    if (g.type_bytes == 1) {
      std::memcpy(planes_.data(), from, elements);
    } else if (g.type_bytes == 2) {
      split_planes_2(from, elements, bytes_of(planes_.data()), bytes_of(planes_.data()) + elements);
    } else {
      split_planes<4>(from, elements, bytes_of(planes_.data()));
    }
    store_le(out.data() + kHeaderBytes + 4 * block, static_cast<std::uint32_t>(at));
    for (std::uint64_t stream = 0; stream < g.stream_count; ++stream) {
      at += encode_stream(std::span(planes_).subspan(stream * g.stream_bytes, g.stream_bytes),
                          out.data() + at);
    }
  }
  std::byte* const header = out.data();
  header[0] = std::byte{kBloscVersion};
  header[1] = std::byte{kFormatVersion};
  header[2] = std::byte{flags_of(g)};
  header[3] = static_cast<std::byte>(g.type_bytes);
  store_le(header + 4, static_cast<std::uint32_t>(g.chunk_bytes));
  store_le(header + 8, static_cast<std::uint32_t>(g.block_bytes));
  store_le(header + 12, static_cast<std::uint32_t>(at));
  return at;
}

std::uint64_t ChunkEncoder::encode_stream(std::span<const std::byte> plane, std::byte* out) {
  // One byte less than the plane: "does not fit" then means "does not shrink", and a stored size
  // equal to the plane's can only mean raw.
  const std::size_t got =
      ZSTD_compress2(zstd_->context, out + 4, plane.size() - 1, plane.data(), plane.size());
  std::uint64_t size = got;
  if (ZSTD_isError(got) != 0U) {
    LIB_CHECK(ZSTD_getErrorCode(got) == ZSTD_error_dstSize_tooSmall);
    size = plane.size();
    std::memcpy(out + 4, plane.data(), plane.size());
  }
  store_le(out, static_cast<std::uint32_t>(size));
  return 4 + size;
}

struct ChunkDecoder::ZstdState {
  ZstdState() : context(ZSTD_createDCtx()) { LIB_CHECK(context != nullptr); }
  ~ZstdState() { static_cast<void>(ZSTD_freeDCtx(context)); }
  ZstdState(const ZstdState&) = delete;
  ZstdState& operator=(const ZstdState&) = delete;
  ZSTD_DCtx* context;
};

ChunkDecoder::ChunkDecoder() : zstd_(std::make_unique<ZstdState>()) {}
ChunkDecoder::~ChunkDecoder() = default;
ChunkDecoder::ChunkDecoder(ChunkDecoder&&) noexcept = default;
ChunkDecoder& ChunkDecoder::operator=(ChunkDecoder&&) noexcept = default;

Result<void> ChunkDecoder::decode_rows(const ArrayLayout& layout,
                                       std::span<const std::byte> encoded, std::uint64_t begin,
                                       std::uint64_t end, std::span<std::byte> rows) {
  LIB_CHECK(begin <= end && end <= layout.chunk_tokens &&
            rows.size() == (end - begin) * row_bytes(layout));
  const std::uint64_t raw_bytes = chunk_bytes(layout);
  if (encoded.size() < kChecksumBytes || encoded.size() > encoded_bytes_max(raw_bytes)) {
    return damaged("a chunk of " + std::to_string(encoded.size()) + " bytes cannot be right");
  }
  const std::span<const std::byte> body = encoded.first(encoded.size() - kChecksumBytes);
  if (load_le<std::uint32_t>(body.data() + body.size()) != crc32c(body)) {
    return damaged("its CRC32C does not fit");
  }
  if (layout.codec == Codec::zstd) {
    return decode_blosc(layout, body, begin, end, rows);
  }
  if (body.size() != raw_bytes) {
    return damaged("it holds " + std::to_string(body.size()) + " bytes, not " +
                   std::to_string(raw_bytes));
  }
  std::memcpy(rows.data(), body.data() + begin * row_bytes(layout), rows.size());
  return {};
}

Result<void> ChunkDecoder::decode_blosc(const ArrayLayout& layout,
                                        std::span<const std::byte> encoded, std::uint64_t begin,
                                        std::uint64_t end, std::span<std::byte> rows) {
  const Geometry g = geometry_of(layout);
  const std::byte* const header = encoded.data();
  std::uint64_t at = kHeaderBytes + 4 * g.block_count;
  if (encoded.size() < at || header[0] != std::byte{kBloscVersion} ||
      header[1] != std::byte{kFormatVersion} || header[2] != std::byte{flags_of(g)} ||
      header[3] != static_cast<std::byte>(g.type_bytes) ||
      load_le<std::uint32_t>(header + 4) != g.chunk_bytes ||
      load_le<std::uint32_t>(header + 8) != g.block_bytes ||
      load_le<std::uint32_t>(header + 12) != encoded.size()) {
    return damaged("its Blosc header is not the one that zarr.json promises");
  }
  planes_.resize(g.block_bytes);
  const std::uint64_t elements = g.block_bytes / g.type_bytes;
  const std::uint64_t block_rows = layout.chunk_tokens / g.block_count;
  for (std::uint64_t block = 0; block < g.block_count; ++block) {
    const std::uint64_t first = std::max(begin, block * block_rows);
    const std::uint64_t last = std::min(end, (block + 1) * block_rows);
    const bool is_needed = first < last;
    if (load_le<std::uint32_t>(header + kHeaderBytes + 4 * block) != at) {
      return damaged("its Blosc blocks do not follow each other");
    }
    const unsigned char* plane[kPlanesMax] = {};
    for (std::uint64_t stream = 0; stream < g.stream_count; ++stream) {
      if (encoded.size() - at < 4) {
        return damaged("a Blosc stream lies outside it");
      }
      const std::uint64_t size = load_le<std::uint32_t>(encoded.data() + at);
      at += 4;
      if (size == 0 || size > g.stream_bytes || size > encoded.size() - at) {
        return damaged("a Blosc stream lies outside it");
      }
      if (is_needed) {
        LIB_TRY(const std::byte* const bytes,
                decode_stream(encoded.subspan(at, size),
                              std::span(planes_).subspan(stream * g.stream_bytes, g.stream_bytes)));
        plane[stream] = bytes_of(bytes);
      }
      at += size;
    }
    if (!is_needed) {
      continue;
    }
    // From the last on: the first plane's place is that of the others where one stream holds all.
    for (std::uint64_t k = g.type_bytes; k-- > 0;) {
      plane[k] = (k < g.stream_count ? plane[k] : plane[0] + k * elements) +
                 (first - block * block_rows) * layout.width;
    }
    std::byte* const to = rows.data() + (first - begin) * row_bytes(layout);
    const std::uint64_t wanted = (last - first) * layout.width;
    join_planes(plane, g.type_bytes, wanted, to);
  }
  if (at != encoded.size()) {
    return damaged("bytes follow its last Blosc stream");
  }
  return {};
}

Result<const std::byte*> ChunkDecoder::decode_stream(std::span<const std::byte> stored,
                                                     std::span<std::byte> to) {
  if (stored.size() == to.size()) {
    return stored.data();  // raw: used where it lies
  }
  // Exactly one frame that says its size: zstd itself would also take several, skippable ones or
  // none at all.
  if (ZSTD_getFrameContentSize(stored.data(), stored.size()) != to.size() ||
      ZSTD_findFrameCompressedSize(stored.data(), stored.size()) != stored.size() ||
      ZSTD_decompressDCtx(zstd_->context, to.data(), to.size(), stored.data(), stored.size()) !=
          to.size()) {
    return damaged("a zstd frame in it is not valid");
  }
  return to.data();
}

}  // namespace librarian::activation_store
