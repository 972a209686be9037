#pragma once
/// What executors ask of a device, at the granularity of a kernel call. The CPU device is the
/// reference; others are checked against it.

#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <stop_token>
#include <string>
#include <tuple>
#include <vector>

#include "base/error.h"
#include "gpu_exec/expert_ops.h"
#include "gpu_exec/model_spec.h"
#include "gpu_exec/quantised.h"
#include "gpu_exec/topk.h"

namespace librarian::gpu_exec {

/// Rows of consecutive positions of one sample inside a block.
struct Segment {
  std::uint64_t row_begin = 0;  ///< First row of the block that belongs to it.
  std::uint64_t rows = 0;
  /// Position of the first row in its sample. Above 0 only if the block is one tile of a long
  /// sample whose earlier tiles ran just before, in order, on this layer: their keys and values
  /// are still there.
  std::uint64_t position = 0;
  /// Tokens of the whole sample; 0: it ends with this segment. Matters to rotary embeddings that
  /// depend on the length.
  std::uint64_t sample_rows = 0;
};

/// Memory of a device, or of the host for a device; freed with its owner.
using DeviceMemory = std::unique_ptr<std::byte, std::function<void(std::byte*)>>;

/// What the operations of a model will be, as far as scratch depends on it.
struct ScratchNeeds {
  std::uint32_t head_dim_max = 0;  ///< Or value_dim.
  std::uint32_t group_max = 0;     ///< Query heads per key head.
};

/// Orders of a device's work. Work of one queue is done in the order it was given; that of two is
/// not ordered unless one waits for a ticket of the other.
enum class Queue : std::uint8_t {
  weights,   ///< pack_matrix(), load_vector().
  upload,    ///< copy_in().
  compute,   ///< copy() and all operations.
  download,  ///< copy_out().
};
/// The work that a queue was given before a moment.
struct Ticket {
  Queue queue = Queue::compute;
  std::uint64_t number = 0;  ///< 0: nothing, which is always done.
};

/// A matrix [outputs, inputs] inside a tensor of a checkpoint, at any alignment.
struct MatrixSource {
  const std::byte* bytes = nullptr;
  DType type = DType::bf16;
  RowRuns rows;             ///< Where output i lies.
  bool transposed = false;  ///< The tensor is [inputs, tensor_rows], else [tensor_rows, inputs].
  std::uint64_t tensor_rows = 0;  ///< Only read if transposed.
  /// The tensor as a quantised checkpoint has it, or null. Then it is decoded to `type`, `bytes` is
  /// not read, and it is not transposed.
  const QuantisedMatrix* quantised = nullptr;
  /// Of a quantised one: Device::staging_bytes() of the device's memory, aligned to 64, that no
  /// work of other queues touches. Tests give less, in `staging_bytes`.
  std::byte* staging = nullptr;
  std::uint64_t staging_bytes = 0;
};

/// A vector inside a tensor of a checkpoint, at any alignment.
struct VectorSource {
  const std::byte* bytes = nullptr;
  DType type = DType::bf16;
  RowRuns rows;
  float plus = 0;  ///< Added to each element in f32.
};

/// A matrix [outputs, inputs] as pack_matrix() left it, with its bias.
struct PackedMatrix {
  const std::byte* packed = nullptr;
  DType type = DType::bf16;     ///< Type of the packed elements: the checkpoint's.
  const float* bias = nullptr;  ///< [outputs], or null.
  bool transposed = false;      ///< As its source was: a device may keep that order.
};

/// y = activation(x * matrix^T + bias); accumulates in f32 in a fixed order over the inputs.
struct LinearOp {
  const std::byte* x = nullptr;  ///< [rows, inputs] row-major, `dtype`.
  std::byte* y = nullptr;        ///< [rows, outputs], `dtype`; must not overlap x.
  DType dtype = DType::bf16;
  std::uint64_t rows = 0, inputs = 0, outputs = 0;
  PackedMatrix matrix;
  Activation activation = Activation::identity;
  std::uint64_t y_stride = 0;  ///< Elements from one row of y to the next; 0: outputs.
  bool y_f32 = false;          ///< y is f32, whatever `dtype`: nothing is rounded.
  /// The rows are those of a block that chose an expert, however few. Part of the numbers: a device
  /// may have another way for such products.
  bool few_rows = false;
};

/// y = act(x * gate^T + gate bias) * (x * up^T + up bias); both products stay f32 until y.
struct GluOp {
  const std::byte* x = nullptr;  ///< [rows, inputs] row-major, `dtype`.
  std::byte* y = nullptr;        ///< [rows, width], `dtype`; must not overlap x.
  DType dtype = DType::bf16;
  std::uint64_t rows = 0, inputs = 0, width = 0;
  PackedMatrix gate, up;
  Activation activation = Activation::silu;
  std::uint64_t y_stride = 0;  ///< Elements from one row of y to the next; 0: width.
  bool few_rows = false;       ///< As of LinearOp.
};

/// rms: y = v / rms(v) * weight; layer: y = (v - mean(v)) / deviation(v) * weight + bias, row by
/// row, where v = x or x + addend. In f32 with one rounding.
/// @source Zhang and Sennrich 2019, eq. 4; Ba et al. 2016, eq. 3.
struct NormOp {
  const std::byte* x = nullptr;       ///< [rows, width] row-major, `dtype`.
  const std::byte* addend = nullptr;  ///< As x, or null.
  std::byte* y = nullptr;             ///< The same shape; may be x.
  DType dtype = DType::bf16;
  std::uint64_t rows = 0, width = 0;
  NormKind kind = NormKind::rms;
  const float* weight = nullptr;  ///< [width].
  const float* bias = nullptr;    ///< [width], or null.
  float epsilon = 0;              ///< Added to the mean square or the variance.
};

/// Fills table[i] = {cos[rotary_dim / 2], sin[rotary_dim / 2]} for positions
/// first_position + i: angle = f32(position) * inverse_frequency in f32, then cos and sin of that
/// f32 angle in f64, rounded to f32 and multiplied in f32, which is transformers' arithmetic.
struct RopeTableOp {
  std::span<const float> inverse_frequency;  ///< [rotary_dim / 2], host memory.
  float cos_sin_multiplier = 1.0F;
  std::uint64_t first_position = 0, rows = 0;
  float* table = nullptr;  ///< [rows, rotary_dim], in memory of rope_table_floats().
};

/// Normalises each head (if `norm_weight` or `unit_norm`), turns rotary_dim of its dimensions and
/// multiplies by the temperature of its position, in place; one rounding for all.
struct RotateOp {
  std::byte* x = nullptr;  ///< [rows, heads, head_dim] row-major, `dtype`.
  DType dtype = DType::bf16;
  std::uint64_t rows = 0;
  std::uint32_t heads = 0, head_dim = 0, rotary_dim = 0;
  std::uint32_t rotary_begin = 0;  ///< The first dimension that turns.
  RopeStyle style = RopeStyle::halves;
  NormKind norm = NormKind::rms;
  const float* norm_weight = nullptr;    ///< [head_dim] of head 0, or null: none.
  std::uint32_t norm_weight_stride = 0;  ///< From one head's weights to the next one's; 0: shared.
  bool unit_norm = false;                ///< A norm although it has no weights.
  bool norm_after = false;               ///< The norm comes after the turn.
  float epsilon = 0;
  std::span<const Segment> segments;  ///< Cover the rows.
  /// From RopeTableOp. Row of the table: position - first_position; where `table_by_row`, the row
  /// of the block, for tables that are not the same for all segments.
  const float* table = nullptr;
  std::uint64_t first_position = 0;
  bool table_by_row = false;
  /// 1 + beta * log(1 + floor((position + offset) / original)); original 0: none.
  float temperature_beta = 0;
  std::uint32_t temperature_original = 0, temperature_offset = 0;
};

/// Where a row's heads lie, in elements from one row to the next and from one head to the next; 0:
/// as dense as can be.
struct HeadStrides {
  std::uint64_t row = 0, head = 0;
  /// For `heads` heads of `width` elements.
  HeadStrides or_dense(std::uint64_t heads, std::uint64_t width) const {
    const std::uint64_t step = head != 0 ? head : width;
    return {row != 0 ? row : heads * step, step};
  }
};

/// Attention of each segment over its own sample. Per query row an online softmax in f32 over key
/// chunks at fixed multiples from the sample's start.
/// @source Milakov and Gimelshein 2018; Dao et al. 2022, algorithm 1.
struct AttentionOp {
  std::byte* q = nullptr;  ///< [rows, heads, head_dim] row-major, `dtype`.
  /// [rows, heads, value_dim], rows `y_stride` elements apart (0: as dense as can be); must not
  /// overlap q. Null: in q's place, of values that are as wide as heads.
  std::byte* y = nullptr;
  std::uint64_t y_stride = 0;
  const std::byte* k = nullptr;  ///< [kv rows, kv_heads, head_dim - shared_dim], `dtype`.
  const std::byte* v = nullptr;  ///< [kv rows, kv_heads, value_dim], `dtype`.
  HeadStrides k_strides, v_strides;
  /// [kv rows, shared_dim] row-major: the last dimensions of every head's keys. Null if shared_dim
  /// is 0.
  const std::byte* k_shared = nullptr;
  DType dtype = DType::bf16;
  std::uint32_t heads = 0, kv_heads = 0, head_dim = 0;
  std::uint32_t shared_dim = 0;
  std::uint32_t value_dim = 0;  ///< 0: head_dim.
  float scale = 0;
  bool causal = true;        ///< Else every query sees the whole sample, which is then one segment.
  std::uint32_t window = 0;  ///< Query i sees keys j with i - window < j <= i; 0: no limit.
  std::uint32_t chunk = 0;   ///< Query i sees keys j with i / chunk == j / chunk; 0: no limit.
  float softcap = 0;         ///< Scores become softcap * tanh(score / softcap); 0: none.
  const float* sinks = nullptr;   ///< [heads], scores in the denominator only, or null.
  const float* slopes = nullptr;  ///< [heads], times the key's position is added, or null.
  /// Position 0 of a segment's sample is row `row_begin` of k and v, whatever `position` is.
  std::span<const Segment> segments;
};

/// Largest head that attention() and rotate() take, and largest value_dim.
inline constexpr std::uint32_t kHeadDimMax = 256;

/// Size of RopeTableOp::table in floats: kernels may read a little beyond the last row.
constexpr std::uint64_t rope_table_floats(std::uint64_t rows, std::uint32_t rotary_dim) {
  return rows * rotary_dim + 16;
}

/// x = x + (y + z) * scale, element by element in f32 with one rounding.
struct AddOp {
  std::byte* x = nullptr;
  const std::byte* y = nullptr;  ///< Must not overlap x, nor may z.
  const std::byte* z = nullptr;  ///< Or null: none.
  DType dtype = DType::bf16;
  std::uint64_t count = 0;
  float scale = 1.0F;
};

/// One tile of the vocabulary for rows that may have met the tiles before it. Products become
/// logits in place: softcap * tanh(product * multiplier / softcap), or product * multiplier without
/// a cap. All in f32; sums over the tile in an order of its size alone.
/// @source Milakov and Gimelshein 2018 (online softmax with top k)
struct TopkOp {
  float* logits = nullptr;  ///< [rows, count] row-major: the head's products; overwritten.
  std::uint64_t rows = 0;
  std::uint64_t count = 0;     ///< Of ids: at most kVocabularyTile.
  std::uint64_t first_id = 0;  ///< Behind all that came before.
  float multiplier = 1.0F;
  float softcap = 0;                       ///< 0: none.
  std::uint32_t k = 0;                     ///< 1 to kTopkMax.
  const std::int32_t* gold_ids = nullptr;  ///< [rows] the token that came next, or -1.
  std::byte* memory = nullptr;  ///< [rows] of topk_row_bytes(k); see TopkRow and clear_topk().
};

/// Size of a product's matrix, [outputs, inputs].
struct ProductSize {
  std::uint64_t outputs = 0, inputs = 0;
  bool transposed = false;  ///< See PackedMatrix.
  bool few_rows = false;    ///< See LinearOp.
  bool operator<(const ProductSize& other) const {
    return std::tie(outputs, inputs, transposed, few_rows) <
           std::tie(other.outputs, other.inputs, other.transposed, other.few_rows);
  }
};

/// One executor's device. Pointers are to memory that it can address: its own arena, or, if
/// works_on_host_memory(), any. Every operation is bit-exact per row: a row's result does not
/// depend on the number of rows, on the row's place among them or on threads(). Work is done in the
/// order of its queue (see Queue), on the CPU before the call returns. Not thread-safe. The long
/// operations look at `stop` now and then and return early with their output undefined: ask the
/// token afterwards.
class Device {
 public:
  virtual ~Device() = default;

  /// Names the arithmetic: results are equal bit for bit on one kind, e.g. "cpu-avx512".
  virtual std::string kind() const = 0;
  virtual int threads() const = 0;
  /// Floating-point operations per second of all threads together, at most, in products of
  /// matrices of `type`: measured in the first call for some milliseconds, known afterwards.
  virtual double peak_flops(DType type) = 0;

  /// What a user should know before computing in `type` here, a sentence each.
  virtual std::vector<std::string> warnings(DType /*type*/) const { return {}; }
  /// Decides how products of these sizes are computed, and says it, one sentence each, as far as
  /// kind() does not: a function of kind, sizes and type alone. Others are computed in a way that
  /// is always there. May take memory for a moment, so it comes before allocate().
  /// @error does_not_fit | internal
  virtual Result<std::vector<std::string>> plan_products(std::span<const ProductSize> /*sizes*/,
                                                         DType /*type*/) {
    return std::vector<std::string>();
  }

  /// Whether operations take pointers to host memory. Else rows are copied in and out.
  virtual bool works_on_host_memory() const { return true; }
  /// Memory in which pack_matrix() keeps parts of quantised matrices until they are decoded.
  virtual std::uint64_t staging_bytes() const { return 0; }
  /// Places for weights that take turns: with 2, the next ones come while these are used.
  virtual std::uint64_t weight_buffers() const { return 1; }
  /// linear() and glu() read and write whole multiples of so many rows; what they write beyond the
  /// operation's rows is undefined.
  virtual std::uint64_t row_unit() const { return 1; }
  /// Most bytes that allocate() can give, all together.
  virtual std::uint64_t memory_limit() const { return ~std::uint64_t{0}; }
  /// Most rows of a block.
  virtual std::uint64_t block_rows_limit() const { return ~std::uint64_t{0}; }
  /// Host memory that the device itself took, beside allocate_host().
  virtual std::uint64_t host_bytes() const { return 0; }

  /// @return  Exactly `bytes`, aligned to 64 or more; contents undefined.
  /// @error does_not_fit  the memory is not there.
  virtual Result<DeviceMemory> allocate(std::uint64_t bytes) = 0;
  /// Host memory that copies reach fast. @return and @error as allocate().
  virtual Result<DeviceMemory> allocate_host(std::uint64_t bytes) { return allocate(bytes); }

  virtual void copy_in(const std::byte* host, std::byte* device, std::uint64_t bytes) = 0;
  virtual void copy_out(const std::byte* device, std::byte* host, std::uint64_t bytes) = 0;
  /// Copies inside the device, in the order of `compute`.
  virtual void copy(const std::byte* from, std::byte* to, std::uint64_t bytes) = 0;
  /// All work of `queue` so far.
  virtual Ticket mark(Queue queue) { return {queue, 0}; }
  /// Work that `queue` is given from now on begins after the ticket's.
  virtual void wait(Queue /*queue*/, Ticket /*ticket*/) {}
  /// Whether the ticket's work is done.
  /// @error internal  the device failed; nothing it holds is to be trusted.
  virtual Result<bool> reached(Ticket /*ticket*/) { return true; }

  /// Bytes of a packed matrix or of a loaded vector; multiples of 64.
  virtual std::uint64_t packed_bytes(std::uint64_t outputs, std::uint64_t inputs,
                                     DType type) const = 0;
  virtual std::uint64_t vector_bytes(std::uint64_t count) const = 0;
  /// Bytes that operations need as scratch, for all threads together.
  virtual std::uint64_t scratch_bytes(const ScratchNeeds& needs) const = 0;

  /// Packs a matrix [outputs, inputs].
  /// @param source  Its bytes must stay until the work is done.
  /// @param packed  packed_bytes() at an alignment of 64.
  virtual void pack_matrix(const MatrixSource& source, std::uint64_t outputs, std::uint64_t inputs,
                           std::byte* packed) = 0;
  /// Widens a vector to f32.
  /// @param source  As pack_matrix()'s.
  /// @param out     vector_bytes() at an alignment of 64, of which the first `count` floats are it.
  virtual void load_vector(const VectorSource& source, std::uint64_t count, float* out) = 0;

  /// @param scratch  scratch_bytes() at an alignment of 64; contents do not matter.
  virtual void linear(const LinearOp& op, std::byte* scratch, const std::stop_token& stop) = 0;
  virtual void glu(const GluOp& op, std::byte* scratch, const std::stop_token& stop) = 0;
  virtual void attention(const AttentionOp& op, std::byte* scratch,
                         const std::stop_token& stop) = 0;
  virtual void rope_table(const RopeTableOp& op, std::byte* scratch) = 0;
  virtual void rotate(const RotateOp& op, std::byte* scratch) = 0;
  virtual void norm(const NormOp& op) = 0;
  virtual void add(const AddOp& op) = 0;
  virtual void topk(const TopkOp& op) = 0;

  /// Whether the operations below are there.
  virtual bool runs_experts() const { return false; }
  virtual void route(const RouteOp& /*op*/) { LIB_CHECK(false); }
  virtual void gather(const GatherOp& /*op*/) { LIB_CHECK(false); }
  virtual void combine(const CombineOp& /*op*/) { LIB_CHECK(false); }
  virtual void round(const RoundOp& /*op*/) { LIB_CHECK(false); }
  /// Zeros.
  virtual void clear(std::byte* /*at*/, std::uint64_t /*bytes*/) { LIB_CHECK(false); }
};

/// Instruction-set path of the CPU device. Results are equal bit for bit on one path, and differ
/// in low bits between paths. `amx` multiplies bf16 activations with bf16 weights in tiles, where
/// subnormal numbers count as zero; all else, products with f16 or f32 included, is as on `avx512`.
enum class CpuIsa : std::uint8_t { portable, avx2, avx512, amx };
/// All of them, the best last.
inline constexpr CpuIsa kCpuIsas[] = {CpuIsa::portable, CpuIsa::avx2, CpuIsa::avx512, CpuIsa::amx};
const char* cpu_isa_name(CpuIsa isa);
/// The best path that this machine runs and this program has.
CpuIsa best_cpu_isa();
/// Whether this machine runs `isa`. Asks the operating system for the use of AMX tiles where that
/// is the question.
bool cpu_has_isa(CpuIsa isa);

/// @param threads  Worker threads for kernels, at least 1.
/// @error invalid_argument  this machine cannot run `isa`, or threads < 1.
Result<std::unique_ptr<Device>> make_cpu_device(CpuIsa isa, int threads);

}  // namespace librarian::gpu_exec
