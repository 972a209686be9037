// The CPU device: cuts operations into tasks of one kernel call each and runs them on its own
// threads. Which thread runs a task changes nothing in its result.
#include <sys/mman.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <cmath>
#include <cstring>
#include <map>
#include <utility>
#include <vector>

#include "gpu_exec/cpu_isa.h"
#include "gpu_exec/cpu_kernels.h"
#include "gpu_exec/cpu_pack.h"
#include "gpu_exec/cpu_peak.h"
#include "gpu_exec/device.h"
#include "gpu_exec/layer_executor.h"
#include "gpu_exec/router_functors.h"
#include "gpu_exec/task_pool.h"

namespace librarian::gpu_exec {
namespace {

std::uint64_t divide_up(std::uint64_t value, std::uint64_t unit) {
  return (value + unit - 1) / unit;
}
std::uint64_t round_up(std::uint64_t value, std::uint64_t unit) {
  return divide_up(value, unit) * unit;
}

/// Elements that one task of a row-wise operation handles: some microseconds of work.
constexpr std::uint64_t kTaskElements = 32768;

/// Weights of a norm that has none.
constexpr std::array<float, kHeadDimMax> kOnes = [] {
  std::array<float, kHeadDimMax> ones{};
  ones.fill(1.0F);
  return ones;
}();

class CpuDevice final : public Device {
 public:
  CpuDevice(const char* path, const CpuKernels& kernels, int threads)
      : kind_(std::string("cpu-") + path), kernels_(kernels), pool_(threads) {}

  std::string kind() const override { return kind_; }
  int threads() const override { return pool_.threads(); }
  double peak_flops(DType type) override {
    double& peak = peak_flops_[type];
    if (peak == 0) {
      peak = measured_peak_flops(kernels_, type, pool_);
    }
    return peak;
  }

  Result<DeviceMemory> allocate(std::uint64_t bytes) override {
    void* memory = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (memory == MAP_FAILED) {
      return Error(ErrorCode::does_not_fit, "cannot map " + std::to_string(bytes) +
                                                " bytes for the executor: " + std::strerror(errno));
    }
    // Fewer TLB misses in the packed weights; refusal costs speed only.
    static_cast<void>(madvise(memory, bytes, MADV_HUGEPAGE));
    return DeviceMemory(static_cast<std::byte*>(memory), [bytes](std::byte* at) {
      static_cast<void>(munmap(at, bytes));  // Fails only for a wrong range: our own.
    });
  }

  void copy_in(const std::byte* host, std::byte* device, std::uint64_t bytes) override {
    std::memcpy(device, host, bytes);
  }
  void copy_out(const std::byte* device, std::byte* host, std::uint64_t bytes) override {
    std::memcpy(host, device, bytes);
  }
  void copy(const std::byte* from, std::byte* to, std::uint64_t bytes) override {
    std::memcpy(to, from, bytes);
  }

  std::uint64_t packed_bytes(std::uint64_t outputs, std::uint64_t inputs,
                             DType type) const override {
    return round_up(divide_up(outputs, kernels_.panel_columns) *
                        packed_panel_bytes(inputs, panel_layout(kernels_, type), type),
                    64);
  }

  std::uint64_t vector_bytes(std::uint64_t count) const override {
    return round_up(count * sizeof(float), 64);
  }

  std::uint64_t scratch_bytes(const ScratchNeeds& needs) const override {
    return static_cast<std::uint64_t>(pool_.threads()) * thread_scratch_floats(needs) *
           sizeof(float);
  }

  void pack_matrix(const MatrixSource& source, std::uint64_t outputs, std::uint64_t inputs,
                   std::byte* packed) override {
    const PanelLayout layout = panel_layout(kernels_, source.type);
    pool_.run(divide_up(outputs, layout.columns), [&](std::uint64_t panel) {
      pack_panel(source, outputs, inputs, layout, panel, packed);
    });
  }

  void load_vector(const VectorSource& source, std::uint64_t count, float* out) override {
    const std::uint64_t element_bytes = dtype_bytes(source.type);
    for (std::uint64_t i = 0; i < count; ++i) {
      convert_elements(source.type,
                       {source.bytes + source.rows.at(i) * element_bytes, element_bytes},
                       DType::f32, {reinterpret_cast<std::byte*>(out + i), sizeof(float)});
      out[i] += source.plus;
    }
  }

  void linear(const LinearOp& op, std::byte* scratch, const std::stop_token& stop) override {
    LinearTile whole{};
    whole.x = op.x;
    whole.y = op.y;
    whole.dtype = op.dtype;
    whole.y_f32 = op.y_f32;
    whole.inputs = op.inputs;
    whole.outputs = op.outputs;
    whole.y_stride = op.y_stride == 0 ? op.outputs : op.y_stride;
    whole.matrices[0] = view(op.matrix);
    whole.activation = op.activation;
    whole.row_end = op.rows;
    run_linear(whole, scratch, stop);
  }

  void glu(const GluOp& op, std::byte* scratch, const std::stop_token& stop) override {
    LinearTile whole{};
    whole.x = op.x;
    whole.y = op.y;
    whole.dtype = op.dtype;
    whole.inputs = op.inputs;
    whole.outputs = op.width;
    whole.y_stride = op.y_stride == 0 ? op.width : op.y_stride;
    whole.matrices[0] = view(op.gate);
    whole.matrices[1] = view(op.up);
    whole.activation = op.activation;
    whole.glu = true;
    whole.row_end = op.rows;
    run_linear(whole, scratch, stop);
  }

  void attention(const AttentionOp& op, std::byte* scratch, const std::stop_token& stop) override {
    const std::uint64_t element_bytes = dtype_bytes(op.dtype);
    const std::uint64_t group = op.heads / op.kv_heads;
    const std::uint64_t tile_positions = attention_tile_positions(group);
    const std::uint64_t value_dim = op.value_dim != 0 ? op.value_dim : op.head_dim;
    const std::uint64_t own_dim = op.head_dim - op.shared_dim;
    const HeadStrides k_strides = op.k_strides.or_dense(op.kv_heads, own_dim);
    const HeadStrides v_strides = op.v_strides.or_dense(op.kv_heads, value_dim);
    LIB_CHECK(op.y != nullptr || value_dim == op.head_dim);
    const std::uint64_t thread_floats =
        attention_floats(std::max<std::uint64_t>(op.head_dim, value_dim), group);
    // first_task[i]: number of tasks before segment i.
    std::vector<std::uint64_t> first_task(op.segments.size() + 1, 0);
    for (std::size_t i = 0; i < op.segments.size(); ++i) {
      first_task[i + 1] =
          first_task[i] + divide_up(op.segments[i].rows, tile_positions) * op.kv_heads;
    }
    pool_.run(first_task.back(), [&](std::uint64_t task) {
      if (stop.stop_requested()) {
        return;
      }
      const auto after = std::upper_bound(first_task.begin(), first_task.end(), task);
      const auto segment_index = static_cast<std::size_t>(after - first_task.begin()) - 1;
      const Segment& segment = op.segments[segment_index];
      // Tiles of one head follow one another: they share keys. The last tile, which may see the
      // most, comes first, so that no long task is left to the end.
      const std::uint64_t tiles = divide_up(segment.rows, tile_positions);
      const std::uint64_t tile_of_segment = task - first_task[segment_index];
      const std::uint64_t kv_head = tile_of_segment / tiles;
      const std::uint64_t row = (tiles - 1 - tile_of_segment % tiles) * tile_positions;
      AttentionTile tile{};
      tile.dtype = op.dtype;
      const std::uint64_t query = segment.row_begin + row;
      tile.q_stride = static_cast<std::uint64_t>(op.heads) * op.head_dim;
      tile.y_stride = op.y_stride != 0 ? op.y_stride : op.heads * value_dim;
      tile.k_stride = k_strides.row;
      tile.v_stride = v_strides.row;
      std::byte* const y = op.y != nullptr ? op.y : op.q;
      tile.q = op.q + (query * tile.q_stride + kv_head * group * op.head_dim) * element_bytes;
      tile.y = y + (query * tile.y_stride + kv_head * group * value_dim) * element_bytes;
      tile.k =
          op.k + (segment.row_begin * k_strides.row + kv_head * k_strides.head) * element_bytes;
      tile.v =
          op.v + (segment.row_begin * v_strides.row + kv_head * v_strides.head) * element_bytes;
      if (op.shared_dim != 0) {
        tile.k_shared = op.k_shared + segment.row_begin * op.shared_dim * element_bytes;
      }
      tile.head_dim = op.head_dim;
      tile.shared_dim = op.shared_dim;
      tile.value_dim = value_dim;
      tile.group = group;
      tile.position_begin = segment.position + row;
      tile.position_end = segment.position + std::min(row + tile_positions, segment.rows);
      tile.rows = segment.position + segment.rows;
      tile.causal = op.causal;
      tile.window = op.window;
      tile.chunk = op.chunk;
      tile.scale = op.scale;
      tile.softcap = op.softcap;
      tile.sinks = op.sinks == nullptr ? nullptr : op.sinks + kv_head * group;
      tile.slopes = op.slopes == nullptr ? nullptr : op.slopes + kv_head * group;
      tile.scratch = thread_scratch(scratch, thread_floats);
      kernels_.attention(tile);
    });
  }

  void norm(const NormOp& op) override {
    const std::uint64_t row_bytes = op.width * dtype_bytes(op.dtype);
    parallel_rows(op.rows, op.width, [&](std::uint64_t begin, std::uint64_t end) {
      const std::uint64_t at = begin * row_bytes;
      kernels_.norm({op.x + at, op.addend == nullptr ? nullptr : op.addend + at, op.y + at,
                     op.dtype, end - begin, op.width, op.kind, op.weight, op.bias, op.epsilon});
    });
  }

  void rope_table(const RopeTableOp& op, std::byte* /*scratch*/) override {
    const std::uint64_t half = op.inverse_frequency.size();
    // A sine costs about as much as a hundred simple elements.
    parallel_rows(op.rows, half * 100, [&](std::uint64_t begin, std::uint64_t end) {
      for (std::uint64_t r = begin; r < end; ++r) {
        float* row = op.table + r * 2 * half;
        const auto position = static_cast<float>(op.first_position + r);
        for (std::uint64_t i = 0; i < half; ++i) {
          const double angle = position * op.inverse_frequency[i];
          row[i] = static_cast<float>(std::cos(angle)) * op.cos_sin_multiplier;
          row[half + i] = static_cast<float>(std::sin(angle)) * op.cos_sin_multiplier;
        }
      }
    });
  }

  void rotate(const RotateOp& op, std::byte* /*scratch*/) override {
    const std::uint64_t width = static_cast<std::uint64_t>(op.heads) * op.head_dim;
    parallel_rows(op.rows, width * 4, [&](std::uint64_t begin, std::uint64_t end) {
      const auto after = std::upper_bound(
          op.segments.begin(), op.segments.end(), begin,
          [](std::uint64_t row, const Segment& segment) { return row < segment.row_begin; });
      for (auto segment = after - 1; begin < end; ++segment) {
        const std::uint64_t run_end = std::min(end, segment->row_begin + segment->rows);
        if (run_end <= begin) {
          continue;  // An empty segment.
        }
        rotate_run(op, *segment, begin, run_end);
        begin = run_end;
      }
    });
  }

  void add(const AddOp& op) override {
    parallel_rows(op.count, 1, [&](std::uint64_t begin, std::uint64_t end) {
      const std::uint64_t at = begin * dtype_bytes(op.dtype);
      kernels_.add({op.x + at, op.y + at, op.z == nullptr ? nullptr : op.z + at, op.dtype,
                    end - begin, op.scale});
    });
  }

  void topk(const TopkOp& op) override {
    LIB_CHECK(op.count <= kVocabularyTile && op.k >= 1 && op.k <= kTopkMax);
    // An exponential costs about as much as ten simple elements.
    parallel_rows(op.rows, op.count * 10, [&](std::uint64_t begin, std::uint64_t end) {
      kernels_.topk({op.logits + begin * op.count, end - begin, op.count, op.first_id,
                     op.multiplier, op.softcap, op.k, op.gold_ids + begin,
                     op.memory + begin * topk_row_bytes(op.k)});
    });
  }

  bool runs_experts() const override { return true; }

  void route(const RouteOp& op) override {
    const MoeSpec& moe = *op.moe;
    const std::uint64_t experts = moe.experts;
    // A score costs about as much as ten simple elements, and each choice looks at all of them.
    parallel_rows(op.rows, experts * (10 + moe.top_k), [&](std::uint64_t begin, std::uint64_t end) {
      std::vector<float> memory(3 * experts);
      for (std::uint64_t row = begin; row < end; ++row) {
        route_row(moe, op.products + row * experts, op.select_bias, memory.data(),
                  memory.data() + experts, memory.data() + 2 * experts, op.ids + row * moe.top_k,
                  op.weights + row * moe.top_k);
        if (op.shared_products != nullptr) {
          op.shared_products[row] = sigmoid_of(op.shared_products[row]);
        }
      }
    });
  }

  void gather(const GatherOp& op) override {
    parallel_rows(op.count, op.width, [&](std::uint64_t begin, std::uint64_t end) {
      GatherOp part = op;
      part.rows += begin;
      part.factors = op.factors == nullptr ? nullptr : op.factors + begin;
      part.y += begin * op.width * dtype_bytes(op.dtype);
      part.count = end - begin;
      kernels_.gather(part);
    });
  }

  void combine(const CombineOp& op) override {
    parallel_rows(op.count, op.width, [&](std::uint64_t begin, std::uint64_t end) {
      CombineOp part = op;
      if (op.rows == nullptr) {
        part.sums += begin * op.width;
      } else {
        part.rows += begin;
      }
      part.factors = op.factors == nullptr ? nullptr : op.factors + begin;
      part.y += begin * op.width;
      part.count = end - begin;
      kernels_.combine(part);
    });
  }

  void round(const RoundOp& op) override {
    parallel_rows(op.count, 1, [&](std::uint64_t begin, std::uint64_t end) {
      kernels_.round({op.x + begin, op.y + begin * dtype_bytes(op.dtype), op.dtype, end - begin});
    });
  }

  void clear(std::byte* at, std::uint64_t bytes) override { std::memset(at, 0, bytes); }

 private:
  static WeightView view(const PackedMatrix& matrix) {
    return {matrix.packed, matrix.bias, matrix.type};
  }

  std::uint64_t attention_floats(std::uint64_t head_dim, std::uint64_t group) const {
    return round_up(kernels_.attention_scratch_floats(head_dim, group), 16);
  }
  std::uint64_t thread_scratch_floats(const ScratchNeeds& needs) const {
    return std::max(round_up(kernels_.linear_scratch_floats, 16),
                    attention_floats(needs.head_dim_max, std::max(needs.group_max, 1U)));
  }

  /// The calling worker's part; no task waits inside, so it has it to itself until it returns.
  float* thread_scratch(std::byte* scratch, std::uint64_t floats) const {
    return reinterpret_cast<float*>(scratch) +
           static_cast<std::uint64_t>(pool_.thread_index()) * floats;
  }

  /// Rows [begin, end) of the block, which lie in one segment.
  void rotate_run(const RotateOp& op, const Segment& segment, std::uint64_t begin,
                  std::uint64_t end) const {
    const std::uint64_t row_bytes =
        static_cast<std::uint64_t>(op.heads) * op.head_dim * dtype_bytes(op.dtype);
    const std::uint64_t position = segment.position + begin - segment.row_begin;
    const std::uint64_t table_row = op.table_by_row ? begin : position - op.first_position;
    std::vector<float> temperatures;
    if (op.temperature_original != 0) {
      for (std::uint64_t row = 0; row < end - begin; ++row) {
        temperatures.push_back(query_temperature(op.temperature_beta, op.temperature_original,
                                                 position + row + op.temperature_offset));
      }
    }
    RotateTile tile{};
    tile.x = op.x + begin * row_bytes;
    tile.dtype = op.dtype;
    tile.rows = end - begin;
    tile.heads = op.heads;
    tile.head_dim = op.head_dim;
    tile.rotary_dim = op.rotary_dim;
    tile.rotary_begin = op.rotary_begin;
    tile.style = op.style;
    tile.norm = op.norm;
    tile.norm_weight = op.norm_weight == nullptr && op.unit_norm ? kOnes.data() : op.norm_weight;
    tile.norm_weight_stride = op.norm_weight_stride;
    tile.norm_after = op.norm_after;
    tile.epsilon = op.epsilon;
    tile.table = op.table + table_row * op.rotary_dim;
    tile.temperatures = temperatures.empty() ? nullptr : temperatures.data();
    kernels_.rotate(tile);
  }

  void run_linear(const LinearTile& whole, std::byte* scratch, const std::stop_token& stop) {
    if (whole.row_end == 0 || whole.outputs == 0) {
      return;
    }
    const LinearShape shape = kernels_.linear_shape(whole);
    // Tiles of equal size, and enough of them that no thread waits long for another's last one.
    const std::uint64_t row_tiles = divide_up(whole.row_end, shape.rows_max);
    const std::uint64_t tile_rows = round_up(divide_up(whole.row_end, row_tiles), shape.rows_unit);
    const auto tasks_min = static_cast<std::uint64_t>(pool_.threads() == 1 ? 1 : 4 * threads());
    std::uint64_t column_tiles = divide_up(whole.outputs, shape.columns_max);
    while (row_tiles * column_tiles < tasks_min &&
           divide_up(whole.outputs, 2 * column_tiles) >= shape.columns_min) {
      column_tiles *= 2;
    }
    const std::uint64_t tile_columns =
        round_up(divide_up(whole.outputs, column_tiles), kernels_.panel_columns);
    const std::uint64_t thread_floats = round_up(kernels_.linear_scratch_floats, 16);
    pool_.run(row_tiles * column_tiles, [&](std::uint64_t task) {
      // Neighbouring tasks share weights: they are the larger part of the traffic.
      LinearTile tile = whole;
      tile.row_begin = task % row_tiles * tile_rows;
      tile.row_end = std::min(tile.row_begin + tile_rows, whole.row_end);
      tile.column_begin = task / row_tiles * tile_columns;
      tile.column_end = std::min(tile.column_begin + tile_columns, whole.outputs);
      // Rounding up may leave nothing for the last ones.
      if (stop.stop_requested() || tile.row_begin >= tile.row_end ||
          tile.column_begin >= tile.column_end) {
        return;
      }
      tile.scratch = thread_scratch(scratch, thread_floats);
      kernels_.linear(tile);
    });
  }

  /// Calls task(begin, end) for runs that cover [0, rows).
  template <typename Task>
  void parallel_rows(std::uint64_t rows, std::uint64_t row_cost, const Task& task) {
    const std::uint64_t step =
        std::max<std::uint64_t>(1, kTaskElements / std::max<std::uint64_t>(1, row_cost));
    pool_.run(divide_up(rows, step),
              [&](std::uint64_t i) { task(i * step, std::min((i + 1) * step, rows)); });
  }

  const std::string kind_;
  const CpuKernels kernels_;
  TaskPool pool_;
  std::map<DType, double> peak_flops_;
};

}  // namespace

Result<std::unique_ptr<Device>> make_cpu_device(CpuIsa isa, int threads) {
  if (threads < 1) {
    return Error(ErrorCode::invalid_argument, "threads=" + std::to_string(threads) + ", below 1");
  }
  if (!cpu_has_isa(isa)) {
    return Error(ErrorCode::invalid_argument,
                 std::string("this processor cannot run the path ") + cpu_isa_name(isa));
  }
  return make_cpu_device(cpu_isa_name(isa), cpu_kernels(isa), threads);
}

std::unique_ptr<Device> make_cpu_device(const char* path, const CpuKernels& kernels, int threads) {
  return std::make_unique<CpuDevice>(path, kernels, threads);
}

}  // namespace librarian::gpu_exec
