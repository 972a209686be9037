// The CUDA device: turns operations into launches and copies. What it decides is decided here, on
// the host and without CUDA, so that tests can watch it.
#include "gpu_exec/cuda_device.h"

#include <algorithm>
#include <map>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "gpu_exec/cuda_products.h"
#include "gpu_exec/cuda_runtime.h"
#include "gpu_exec/cuda_tables.h"
#include "gpu_exec/cuda_window.h"

namespace librarian::gpu_exec {
namespace {

constexpr std::uint64_t kAlignment = 256;

std::uint64_t aligned(std::uint64_t bytes) {
  return (bytes + kAlignment - 1) / kAlignment * kAlignment;
}

/// Outputs of a product whose sums are finished by a kernel of their own: enough for every
/// multiprocessor to have its share, few enough for a scratch that does not count.
constexpr std::uint64_t kFinishOutputs = 8192;
constexpr std::uint64_t kFinishRows = 2048;  ///< A multiple of the library's.
/// Memory for what is widened at a time, where rows and weights have different types.
constexpr std::uint64_t kWidenBytes = 32U << 20U;
/// Memory for what is decoded at a time of a quantised matrix.
constexpr std::uint64_t kStagingBytes = 32U << 20U;

class CudaDevice final : public Device {
 public:
  CudaDevice(std::unique_ptr<CudaRuntime> runtime, DeviceMemory table_memory,
             std::uint64_t memory_bytes)
      : runtime_(std::move(runtime)),
        products_(*runtime_),
        tables_(*runtime_, std::move(table_memory)),
        memory_bytes_(memory_bytes) {}

  std::string kind() const override {
    const CudaProperties& gpu = runtime_->properties();
    return "cuda-sm" + std::to_string(gpu.major) + std::to_string(gpu.minor) + "-" +
           std::to_string(gpu.multiprocessors) + "sm-" + gpu.libraries;
  }
  int threads() const override { return 1; }
  double peak_flops(DType type) override {
    double& peak = peak_flops_[type];
    if (peak == 0) {
      peak = runtime_->measure_peak_flops(type).value_or(0);
    }
    return peak;
  }

  std::vector<std::string> warnings(DType type) const override {
    const CudaProperties& gpu = runtime_->properties();
    std::vector<std::string> all;
    if (!kCudaProvenOnHardware) {
      all.emplace_back(
          "--device cuda is not yet proven on hardware; tests/gpu/run.sh checks it on this GPU");
    }
    if (type == DType::bf16 && !gpu.has_bf16()) {
      all.push_back(gpu.name +
                    " has no tensor cores for bf16: products run in f32, several times "
                    "slower; --dtype f16 is faster where the model's numbers fit it");
    }
    return all;
  }
  Result<std::vector<std::string>> plan_products(std::span<const ProductSize> sizes,
                                                 DType type) override {
    return products_.plan(sizes, type, kFinishOutputs);
  }

  bool works_on_host_memory() const override { return false; }
  std::uint64_t weight_buffers() const override { return 2; }
  std::uint64_t row_unit() const override {
    return std::max<std::uint64_t>(1, runtime_->library_rows());
  }
  std::uint64_t memory_limit() const override { return memory_bytes_; }
  std::uint64_t host_bytes() const override { return CudaTables::kHostBytes; }
  std::uint64_t staging_bytes() const override { return kStagingBytes; }
  std::uint64_t block_rows_limit() const override { return CudaTables::kRowsMax; }

  Result<DeviceMemory> allocate(std::uint64_t bytes) override { return runtime_->allocate(bytes); }
  Result<DeviceMemory> allocate_host(std::uint64_t bytes) override {
    return runtime_->allocate_host(bytes);
  }

  void copy_in(const std::byte* host, std::byte* device, std::uint64_t bytes) override {
    runtime_->copy(Queue::upload, {host, device, bytes, 1, bytes, bytes});
  }
  void copy_out(const std::byte* device, std::byte* host, std::uint64_t bytes) override {
    runtime_->copy(Queue::download, {device, host, bytes, 1, bytes, bytes});
  }
  void copy(const std::byte* from, std::byte* to, std::uint64_t bytes) override {
    runtime_->copy(Queue::compute, {from, to, bytes, 1, bytes, bytes});
  }
  Ticket mark(Queue queue) override { return runtime_->mark(queue); }
  void wait(Queue queue, Ticket ticket) override { runtime_->wait(queue, ticket); }
  Result<bool> reached(Ticket ticket) override { return runtime_->reached(ticket); }

  /// As in the checkpoint, rows or (transposed) columns of other matrices left out.
  std::uint64_t packed_bytes(std::uint64_t outputs, std::uint64_t inputs,
                             DType type) const override {
    return aligned(outputs * inputs * dtype_bytes(type));
  }
  /// The widened vector, and behind it the checkpoint's bytes, which the device widens itself.
  std::uint64_t vector_bytes(std::uint64_t count) const override {
    return 2 * aligned(count * sizeof(float));
  }
  std::uint64_t scratch_bytes(const ScratchNeeds& /*needs*/) const override {
    return ScratchLayout().bytes;
  }

  void pack_matrix(const MatrixSource& source, std::uint64_t outputs, std::uint64_t inputs,
                   std::byte* packed) override {
    const std::uint64_t element = dtype_bytes(source.type);
    if (source.quantised != nullptr) {
      decode_matrix(source, outputs, packed);
    } else if (source.transposed) {
      copy_runs(source.bytes, source.rows, outputs, element, source.tensor_rows * element, inputs,
                packed);
    } else {
      copy_runs(source.bytes, source.rows, outputs, inputs * element, 0, 1, packed);
    }
  }

  void load_vector(const VectorSource& source, std::uint64_t count, float* out) override {
    auto* const raw = reinterpret_cast<std::byte*>(out) + aligned(count * sizeof(float));
    copy_runs(source.bytes, source.rows, count, dtype_bytes(source.type), 0, 1, raw);
    runtime_->launch(Queue::weights, CudaWiden{raw, source.type, out, count, source.plus});
  }

  void linear(const LinearOp& op, std::byte* scratch, const std::stop_token& /*stop*/) override {
    const std::uint64_t y_stride = op.y_stride == 0 ? op.outputs : op.y_stride;
    const bool same = op.matrix.type == op.dtype;
    // Sums that stay in f32 are of a tile's width, as where they are finished apart.
    if (same && op.matrix.bias == nullptr && op.activation == Activation::identity &&
        (!op.y_f32 || op.outputs <= kFinishOutputs)) {
      CudaProduct product = product_of(op, op.matrix, 0, op.outputs);
      product.y = op.y;
      product.y_stride = y_stride;
      product.out = op.y_f32 ? DType::f32 : op.dtype;
      products_.multiply(product);
      return;
    }
    const ScratchLayout at;
    for_tiles(op.rows, op.outputs, op.inputs, same, [&](const Tile& tile) {
      float* const sums = at.floats(scratch, at.first);
      multiply_tile(op, op.matrix, tile, same, sums, scratch);
      CudaFinish finish;
      finish.x = sums;
      finish.bias = op.matrix.bias == nullptr ? nullptr : op.matrix.bias + tile.column;
      finish.type = op.y_f32 ? DType::f32 : op.dtype;
      finish.y = op.y + (tile.row * y_stride + tile.column) * dtype_bytes(finish.type);
      finish.activation = op.activation;
      finish.rows = tile.rows;
      finish.width = tile.columns;
      finish.y_stride = y_stride;
      runtime_->launch(finish);
    });
  }

  void glu(const GluOp& op, std::byte* scratch, const std::stop_token& /*stop*/) override {
    const std::uint64_t y_stride = op.y_stride == 0 ? op.width : op.y_stride;
    const bool same = op.gate.type == op.dtype && op.up.type == op.dtype;
    const ScratchLayout at;
    LinearOp half;
    half.x = op.x;
    half.dtype = op.dtype;
    half.rows = op.rows;
    half.inputs = op.inputs;
    half.outputs = op.width;
    half.few_rows = op.few_rows;
    for_tiles(op.rows, op.width, op.inputs, same, [&](const Tile& tile) {
      multiply_tile(half, op.gate, tile, same, at.floats(scratch, at.first), scratch);
      multiply_tile(half, op.up, tile, same, at.floats(scratch, at.second), scratch);
      CudaGate gate;
      gate.gate = at.floats(scratch, at.first);
      gate.up = at.floats(scratch, at.second);
      gate.gate_bias = op.gate.bias == nullptr ? nullptr : op.gate.bias + tile.column;
      gate.up_bias = op.up.bias == nullptr ? nullptr : op.up.bias + tile.column;
      gate.y = op.y + (tile.row * y_stride + tile.column) * dtype_bytes(op.dtype);
      gate.type = op.dtype;
      gate.activation = op.activation;
      gate.rows = tile.rows;
      gate.width = tile.columns;
      gate.y_stride = y_stride;
      runtime_->launch(gate);
    });
  }

  void attention(const AttentionOp& op, std::byte* /*scratch*/,
                 const std::stop_token& /*stop*/) override {
    std::vector<CudaAttentionTile> tiles;
    for (const Segment& segment : op.segments) {
      for (std::uint64_t row = 0; row < segment.rows; row += kCudaAttentionRows) {
        CudaAttentionTile tile;
        tile.q_row = static_cast<std::uint32_t>(segment.row_begin + row);
        tile.kv_row = static_cast<std::uint32_t>(segment.row_begin);
        tile.position = static_cast<std::uint32_t>(segment.position + row);
        tile.rows = static_cast<std::uint32_t>(
            std::min<std::uint64_t>(kCudaAttentionRows, segment.rows - row));
        tile.keys = static_cast<std::uint32_t>(segment.position + segment.rows);
        tiles.push_back(tile);
      }
    }
    // The kernel begins with the last: those that see the most, so that no long one is left to the
    // end.
    std::stable_sort(tiles.begin(), tiles.end(),
                     [](const CudaAttentionTile& a, const CudaAttentionTile& b) {
                       return a.position + a.rows < b.position + b.rows;
                     });
    CudaAttention kernel;
    kernel.q = op.q;
    kernel.y = op.y;
    kernel.y_stride = op.y_stride;
    kernel.k = op.k;
    kernel.v = op.v;
    kernel.k_strides = op.k_strides;
    kernel.v_strides = op.v_strides;
    kernel.k_shared = op.k_shared;
    kernel.type = op.dtype;
    kernel.heads = op.heads;
    kernel.kv_heads = op.kv_heads;
    kernel.head_dim = op.head_dim;
    kernel.shared_dim = op.shared_dim;
    kernel.value_dim = op.value_dim;
    kernel.scale = op.scale;
    kernel.causal = op.causal;
    kernel.window = op.window;
    kernel.chunk = op.chunk;
    kernel.softcap = op.softcap;
    kernel.sinks = op.sinks;
    kernel.slopes = op.slopes;
    kernel.tile_count = static_cast<std::uint32_t>(tiles.size());
    tables_.with(std::span<const CudaAttentionTile>(tiles), [&](const CudaAttentionTile* table) {
      kernel.tiles = table;
      runtime_->launch(kernel, products_.on_tensor_cores(op.dtype));
    });
  }

  void rope_table(const RopeTableOp& op, std::byte* /*scratch*/) override {
    CudaRopeTable kernel;
    kernel.multiplier = op.cos_sin_multiplier;
    kernel.first_position = op.first_position;
    kernel.rows = op.rows;
    kernel.half = static_cast<std::uint32_t>(op.inverse_frequency.size());
    kernel.table = op.table;
    tables_.with(op.inverse_frequency, [&](const float* frequencies) {
      kernel.inverse_frequency = frequencies;
      runtime_->launch(kernel);
    });
  }

  void rotate(const RotateOp& op, std::byte* /*scratch*/) override {
    std::vector<CudaRowPlace> places(op.rows);
    for (const Segment& segment : op.segments) {
      for (std::uint64_t row = 0; row < segment.rows; ++row) {
        CudaRowPlace& place = places[segment.row_begin + row];
        const std::uint64_t position = segment.position + row;
        place.table_row = static_cast<std::uint32_t>(
            op.table_by_row ? segment.row_begin + row : position - op.first_position);
        place.temperature = op.temperature_original == 0
                                ? 1.0F
                                : query_temperature(op.temperature_beta, op.temperature_original,
                                                    position + op.temperature_offset);
      }
    }
    CudaRotate kernel;
    kernel.x = op.x;
    kernel.type = op.dtype;
    kernel.rows = op.rows;
    kernel.heads = op.heads;
    kernel.head_dim = op.head_dim;
    kernel.rotary_dim = op.rotary_dim;
    kernel.rotary_begin = op.rotary_begin;
    kernel.style = op.style;
    kernel.norm = op.norm;
    kernel.norm_weight = op.norm_weight;
    kernel.norm_weight_stride = op.norm_weight_stride;
    kernel.unit_norm = op.unit_norm;
    kernel.norm_after = op.norm_after;
    kernel.epsilon = op.epsilon;
    kernel.table = op.rotary_dim == 0 ? nullptr : op.table;
    tables_.with(std::span<const CudaRowPlace>(places), [&](const CudaRowPlace* table) {
      kernel.places = table;
      runtime_->launch(kernel);
    });
  }

  void norm(const NormOp& op) override { runtime_->launch(op); }
  void add(const AddOp& op) override { runtime_->launch(op); }
  void topk(const TopkOp& op) override {
    LIB_CHECK(op.count <= kVocabularyTile && op.k >= 1 && op.k <= kTopkMax);
    runtime_->launch(op);
  }

  bool runs_experts() const override { return true; }
  void route(const RouteOp& op) override {
    runtime_->launch(CudaRoute{op.products, op.rows, *op.moe, op.select_bias, op.ids, op.weights,
                               op.shared_products});
  }
  void gather(const GatherOp& op) override { runtime_->launch(op); }
  void combine(const CombineOp& op) override { runtime_->launch(op); }
  void round(const RoundOp& op) override { runtime_->launch(op); }
  void clear(std::byte* at, std::uint64_t bytes) override { runtime_->clear(at, bytes); }

 private:
  /// Where things are in the scratch of an operation. All are used in the order of the compute
  /// queue, so each operation has all of it.
  struct ScratchLayout {
    ScratchLayout() {
      const auto place = [this](std::uint64_t size) {
        const std::uint64_t offset = bytes;
        bytes += aligned(size);
        return offset;
      };
      constexpr std::uint64_t kSums = kFinishRows * kFinishOutputs * sizeof(float);
      first = place(kSums);
      second = place(kSums);
      wide_rows = place(kWidenBytes);
      wide_weights = place(kWidenBytes + kWidenBytes / 2);
    }
    static float* floats(std::byte* scratch, std::uint64_t offset) {
      return reinterpret_cast<float*>(scratch + offset);
    }
    std::uint64_t first, second, wide_rows, wide_weights;
    std::uint64_t bytes = 0;
  };

  struct Tile {
    std::uint64_t row, rows, column, columns;
  };

  /// Runs of rows (or, `repeats` times with a stride, of columns) packed one after the other.
  void copy_runs(const std::byte* from, const RowRuns& runs, std::uint64_t count,
                 std::uint64_t item_bytes, std::uint64_t from_stride, std::uint64_t repeats,
                 std::byte* to) {
    const std::uint64_t run = std::min(runs.run, count);
    if (repeats > 1 || run == count) {
      // One run of rows; or, transposed, one rectangle per run of columns.
      for (std::uint64_t begin = 0; begin < count; begin += run) {
        const std::uint64_t length = std::min(run, count - begin) * item_bytes;
        runtime_->copy(Queue::weights, {from + runs.at(begin) * item_bytes, to + begin * item_bytes,
                                        length, repeats, repeats > 1 ? from_stride : length,
                                        repeats > 1 ? count * item_bytes : length});
      }
      return;
    }
    LIB_CHECK(count % run == 0);
    runtime_->copy(Queue::weights, {from + runs.first * item_bytes, to, run * item_bytes,
                                    count / run, runs.stride * item_bytes, run * item_bytes});
  }

  /// Brings as many outputs at a time as the staging memory takes, as they are in the checkpoint,
  /// and decodes them there.
  void decode_matrix(const MatrixSource& source, std::uint64_t outputs, std::byte* packed) {
    const QuantisedMatrix& matrix = *source.quantised;
    const std::uint64_t row_bytes = matrix.inputs * dtype_bytes(source.type);
    for (std::uint64_t begin = 0; begin < outputs;) {
      const std::uint64_t end =
          window_end(matrix, source.rows, begin, outputs, source.staging_bytes);
      const QuantisedWindow window = quantised_window(matrix, source.rows, begin, end);
      for (const CudaCopy& copy : window.copies_to(source.staging)) {
        runtime_->copy(Queue::weights, copy);
      }
      runtime_->launch(CudaDecode{window.matrix_at(source.staging), source.rows, begin, end - begin,
                                  packed + begin * row_bytes, source.type});
      begin = end;
    }
  }

  /// Calls what(tile) for tiles whose sums, and widened parts if need be, fit the scratch. The cut
  /// of the columns depends on shapes alone.
  template <typename What>
  static void for_tiles(std::uint64_t rows, std::uint64_t columns, std::uint64_t inputs,
                        bool same_types, const What& what) {
    const std::uint64_t fitting =
        std::max<std::uint64_t>(1, kWidenBytes / (inputs * sizeof(float)));
    const std::uint64_t row_step = same_types ? kFinishRows : std::min(kFinishRows, fitting);
    const std::uint64_t column_step =
        same_types ? kFinishOutputs : std::min(kFinishOutputs, fitting);
    for (std::uint64_t column = 0; column < columns; column += column_step) {
      for (std::uint64_t row = 0; row < rows; row += row_step) {
        what(Tile{row, std::min(row_step, rows - row), column,
                  std::min(column_step, columns - column)});
      }
    }
  }

  /// Outputs [column, column + columns) of a linear operation with rows and weights of one type.
  static CudaProduct product_of(const LinearOp& op, const PackedMatrix& matrix,
                                std::uint64_t column, std::uint64_t columns) {
    CudaProduct product;
    product.x = op.x;
    product.type = op.dtype;
    product.w_transposed = matrix.transposed;
    product.rows = op.rows;
    product.inputs = op.inputs;
    product.outputs = columns;
    product.few_rows = op.few_rows;
    product.x_stride = op.inputs;
    product.w_stride = matrix.transposed ? op.outputs : op.inputs;
    product.w = matrix.packed +
                (matrix.transposed ? column : column * op.inputs) * dtype_bytes(matrix.type);
    return product;
  }

  /// sums[rows, columns] = the tile of a product in f32.
  void multiply_tile(const LinearOp& op, const PackedMatrix& matrix, const Tile& tile, bool same,
                     float* sums, std::byte* scratch) {
    CudaProduct product = product_of(op, matrix, tile.column, tile.columns);
    product.x = op.x + tile.row * op.inputs * dtype_bytes(op.dtype);
    product.rows = tile.rows;
    product.y = reinterpret_cast<std::byte*>(sums);
    product.y_stride = tile.columns;
    product.out = DType::f32;
    if (same) {
      products_.multiply(product);
      return;
    }
    const ScratchLayout at;
    if (op.dtype != DType::f32) {
      float* const wide = at.floats(scratch, at.wide_rows);
      runtime_->launch(Queue::compute,
                       CudaWiden{product.x, op.dtype, wide, tile.rows * op.inputs, 0});
      product.x = reinterpret_cast<const std::byte*>(wide);
    }
    if (matrix.type != DType::f32) {
      auto* const wide = scratch + at.wide_weights;
      const std::uint64_t element = dtype_bytes(matrix.type);
      const std::byte* narrow = product.w;
      if (matrix.transposed) {
        // Its columns are not one run: copied together behind where they are widened to.
        std::byte* const together = wide + tile.columns * op.inputs * sizeof(float);
        runtime_->copy(Queue::compute, {product.w, together, tile.columns * element, op.inputs,
                                        op.outputs * element, tile.columns * element});
        narrow = together;
        product.w_stride = tile.columns;
      }
      runtime_->launch(Queue::compute,
                       CudaWiden{narrow, matrix.type, reinterpret_cast<float*>(wide),
                                 tile.columns * op.inputs, 0});
      product.w = wide;
    }
    product.type = DType::f32;
    runtime_->product(product, {});
  }

  std::unique_ptr<CudaRuntime> runtime_;
  CudaProducts products_;
  CudaTables tables_;
  const std::uint64_t memory_bytes_;
  std::map<DType, double> peak_flops_;
};

}  // namespace

Result<std::unique_ptr<Device>> make_cuda_device(std::unique_ptr<CudaRuntime> runtime,
                                                 std::uint64_t memory_bytes) {
  LIB_TRY(DeviceMemory tables, runtime->allocate_host(CudaTables::kHostBytes));
  return std::unique_ptr<Device>(
      std::make_unique<CudaDevice>(std::move(runtime), std::move(tables), memory_bytes));
}

}  // namespace librarian::gpu_exec
