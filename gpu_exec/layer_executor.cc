#include "gpu_exec/layer_executor.h"

#include <algorithm>
#include <chrono>
#include <deque>
#include <optional>
#include <set>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "gpu_exec/execution_plan.h"
#include "gpu_exec/head_runner.h"
#include "gpu_exec/layer_steps.h"
#include "gpu_exec/layer_weights.h"
#include "gpu_exec/row_transport.h"
#include "gpu_exec/step_runner.h"

namespace librarian::gpu_exec {
namespace {

Error invalid(std::string message) { return {ErrorCode::invalid_argument, std::move(message)}; }

/// Of all matrices that a plan multiplies.
std::vector<ProductSize> product_sizes(const ModelSpec& model, const ExecutorOptions& options,
                                       const ExecutionPlan& plan, const Device& device) {
  std::set<ProductSize> sizes;
  for (const LayerSpec& layer : model.layers) {
    for (const Stage& stage : plan_stages(model, layer, options, plan, device)) {
      for (const WeightSlot& slot : stage.slots) {
        if (slot.weight.inputs != 0) {
          sizes.insert({slot.weight.end - slot.weight.begin, slot.weight.inputs,
                        weight_transposed(layer, slot.weight.key.role),
                        is_expert_role(slot.weight.key.role)});
        }
      }
    }
  }
  if (options.topk != 0) {
    for (const std::uint64_t rows : {std::min<std::uint64_t>(kVocabularyTile, model.vocab_size),
                                     model.vocab_size % kVocabularyTile}) {
      if (rows != 0) {
        sizes.insert({rows, model.hidden_size, false});
      }
    }
  }
  return {sizes.begin(), sizes.end()};
}

}  // namespace

class LayerExecutor::Impl {
 public:
  Impl(const ModelSpec& model, const ExecutorOptions& options, Device& device,
       const ExecutionPlan& plan, std::vector<std::string> products, DeviceMemory arena,
       DeviceMemory host)
      : model_(model),
        options_(options),
        device_(device),
        plan_(plan),
        products_(std::move(products)),
        arena_(std::move(arena)),
        host_(std::move(host)),
        steps_(model, options_, device, plan_, arena_.get(), host_.get()),
        transport_(device, plan_, arena_.get(), host_.get()),
        head_(model, options_, device, plan_, arena_.get(), host_.get()) {
    buffers_.resize(plan_.weight_buffers,
                    {StageWeights(model, device, arena_.get() + plan_.staging), {}, {}});
    for (std::uint64_t place = 0; plan_.expert_out != 0 && place < plan_.blocks_together; ++place) {
      experts_.emplace_back(plan_, arena_.get() + plan_.blocks + place * plan_.block_bytes);
    }
  }

  /// The device may still work with the arena.
  ~Impl() { drain_all(); }
  Impl(const Impl&) = delete;
  Impl& operator=(const Impl&) = delete;

  bool loads_ahead() const { return !plan_.memory.staged && plan_.weight_buffers > 1; }
  bool keeps_tensors() const { return plan_.memory.staged && !streams(); }
  bool streams() const { return plan_.memory.streamed; }
  std::uint64_t blocks_together() const { return plan_.blocks_together; }
  bool copies_rows() const { return plan_.state_slots != 0; }
  const std::vector<std::string>& products() const { return products_; }

  void begin_layer(std::uint32_t layer_index) {
    LIB_CHECK(layer_index < model_.layers.size());
    if (loading_ && !plan_.memory.staged) {
      --next_buffer_;  // Forgotten before it ran: its buffer is the next one's.
    }
    auto layer = std::make_unique<Layer>();
    layer->spec = &model_.layers[layer_index];
    layer->stages = plan_stages(model_, *layer->spec, options_, plan_, device_);
    loading_ = std::move(layer);
    if (!plan_.memory.staged) {
      LIB_CHECK(loading_->stages.size() == 1);
      loading_->buffer = begin_stage(*loading_, 0);
    }
  }

  Result<Ticket> load(WeightKey key, DType type, std::span<const std::byte> bytes) {
    if (key.role == WeightRole::final_norm || key.role == WeightRole::final_norm_bias) {
      LIB_TRY_VOID(load_final(key.role, type, bytes));
      return device_.mark(Queue::weights);
    }
    return load({key, type, bytes});
  }

  Result<Ticket> load(WeightKey key, const QuantisedMatrix& matrix) {
    if (!options_.quantised && device_.staging_bytes() != 0) {
      return invalid(weight_key_name(key) + ": no memory was planned for quantised weights");
    }
    return load({key, options_.dtype, {}, matrix});
  }

  Result<Ticket> load(const LayerTensor& tensor) {
    Layer* layer = loading_ ? loading_.get() : running_.get();
    if (layer == nullptr) {
      return invalid("no layer has begun that has a " + weight_key_name(tensor.key));
    }
    LIB_TRY_VOID(check_tensor(model_, *layer->spec, options_.weight_dtype_max, tensor));
    if (streams()) {
      return load_streamed(*layer, tensor);
    }
    if (plan_.memory.staged) {
      layer->tensors.push_back(tensor);
      return Ticket{};
    }
    buffers_[layer->buffer].weights.load(tensor);
    const Ticket loaded = device_.mark(Queue::weights);
    buffers_[layer->buffer].loaded = loaded;
    return loaded;
  }

  Result<bool> reached(Ticket ticket) { return device_.reached(ticket); }
  Result<void> wait_for(Ticket ticket) { return drain(ticket); }
  std::uint64_t head_tiles() const { return plan_.memory.head_tiles; }

  Result<void> run(std::span<const Block> blocks, LayerIo& io, const std::stop_token& stop) {
    if (loading_) {
      running_ = std::move(loading_);
      steps_.begin_layer(*running_->spec);
    }
    LIB_TRY_VOID(check_layer());
    if (streams()) {
      running_->tensors.clear();  // Of the run before: they come again.
      running_->vectors.clear();
    }
    for (const Block& block : blocks) {
      LIB_TRY_VOID(steps_.check(block));
    }
    if (streams() && blocks.size() > plan_.blocks_together) {
      return invalid(std::to_string(blocks.size()) +
                     " blocks whose weights are streamed; at most " +
                     std::to_string(plan_.blocks_together));
    }
    Result<void> done = run_blocks(blocks, io, stop);
    if (!done) {
      // What was given to load() may go away now, and so may io.
      drain_all();
    }
    return done;
  }

  Result<void> run_final_norm(std::span<const std::byte> rows, std::span<std::byte> normed) {
    const std::uint64_t row_bytes = model_.hidden_size * dtype_bytes(options_.dtype);
    if (rows.size() % row_bytes != 0 || normed.size() != rows.size() ||
        rows.size() > options_.block_rows_max * row_bytes) {
      return invalid("final norm: " + std::to_string(rows.size()) + " bytes in, " +
                     std::to_string(normed.size()) + " out, rows of " + std::to_string(row_bytes) +
                     ", at most " + std::to_string(options_.block_rows_max));
    }
    LIB_TRY_VOID(check_final_loaded());
    device_.wait(Queue::compute, final_loaded_);
    if (!copies_rows()) {
      steps_.final_norm(rows.data(), rows.size() / row_bytes, normed.data());
      return {};
    }
    std::byte* const from = host_.get();
    std::byte* const to = from + plan_.rows_bytes;
    std::byte* const on_device = arena_.get() + plan_.state;
    std::copy(rows.begin(), rows.end(), from);
    device_.copy_in(from, on_device, rows.size());
    device_.wait(Queue::compute, device_.mark(Queue::upload));
    steps_.final_norm(on_device, rows.size() / row_bytes, on_device);
    device_.wait(Queue::download, device_.mark(Queue::compute));
    device_.copy_out(on_device, to, rows.size());
    LIB_TRY_VOID(drain(device_.mark(Queue::download)));
    std::copy(to, to + rows.size(), normed.begin());
    return {};
  }

  void begin_head(std::uint64_t first_tile) {
    loading_.reset();
    running_.reset();
    head_.begin(first_tile);
  }
  Result<Ticket> load_head(WeightRole role, DType type, std::span<const std::byte> bytes) {
    return head_.load(role, type, bytes);
  }
  Result<void> run_topk(std::span<const std::byte> normed, std::span<const std::int32_t> gold_ids,
                        std::span<std::byte> memory, const std::stop_token& stop) {
    LIB_TRY(const Ticket done, head_.run(normed, gold_ids, memory, stop));
    LIB_TRY_VOID(drain(done));
    // A layer's weights may come where the head was from now on, and not before.
    for (Buffer& buffer : buffers_) {
      buffer.free = device_.mark(Queue::compute);
    }
    return head_.take(memory);
  }

 private:
  struct Layer {
    const LayerSpec* spec = nullptr;
    std::vector<Stage> stages;
    std::size_t buffer = 0;            ///< Where it is, if it is resident.
    std::vector<LayerTensor> tensors;  ///< What was loaded and stays, if it comes in stages.
    std::deque<std::vector<std::byte>> vectors;  ///< Bytes of `tensors` if they are streamed.
  };
  struct Buffer {
    StageWeights weights;
    Ticket loaded;
    Ticket free;  ///< The last stage that was in it has been computed.
  };

  Result<void> check_layer() const {
    if (running_ == nullptr) {
      return invalid("run() before begin_layer()");
    }
    if (!plan_.memory.staged) {
      return buffers_[running_->buffer].weights.check_complete();
    }
    if (streams()) {
      return {};  // Stage by stage.
    }
    std::set<WeightKey> loaded;
    for (const LayerTensor& tensor : running_->tensors) {
      loaded.insert(tensor.key);
    }
    for (const WeightKey& key : weight_keys(model_, *running_->spec)) {
      if (!loaded.contains(key)) {
        return invalid(weight_key_name(key) + " is not loaded");
      }
    }
    return {};
  }

  /// Takes the next buffer for a stage of `layer`.
  std::size_t begin_stage(const Layer& layer, std::size_t stage) {
    const std::size_t index = next_buffer_++ % buffers_.size();
    Buffer& buffer = buffers_[index];
    device_.wait(Queue::weights, buffer.free);
    buffer.weights.begin(*layer.spec, layer.stages[stage],
                         arena_.get() + plan_.weights + index * plan_.stage_bytes_max);
    buffer.loaded = device_.mark(Queue::weights);
    return index;
  }

  Result<void> run_blocks(std::span<const Block> blocks, LayerIo& io, const std::stop_token& stop) {
    transport_.begin(blocks, model_.hidden_size * dtype_bytes(options_.dtype), io, stop);
    for (std::size_t begin = 0; begin < blocks.size(); begin += plan_.blocks_together) {
      LIB_TRY_VOID(run_together(blocks, begin,
                                std::min<std::size_t>(blocks.size(), begin + plan_.blocks_together),
                                io, stop));
    }
    return transport_.finish();
  }

  /// A vector may be needed by a later stage, too, and is small; a matrix is of the stage at hand.
  Result<Ticket> load_streamed(Layer& layer, const LayerTensor& tensor) {
    if (&layer != running_.get()) {
      return invalid(weight_key_name(tensor.key) + ": no stage is being loaded");
    }
    StageWeights& weights = buffers_[layer.buffer].weights;
    if (weight_parts(model_, *layer.spec, tensor.key.role).front().inputs == 0) {
      layer.vectors.emplace_back(tensor.bytes.begin(), tensor.bytes.end());
      layer.tensors.push_back({tensor.key, tensor.type, layer.vectors.back()});
      weights.load(layer.tensors.back());
      return device_.mark(Queue::weights);
    }
    if (!weights.has(tensor.key)) {
      return invalid(weight_key_name(tensor.key) + " is not of the stage being loaded");
    }
    if (!is_expert_role(tensor.key.role) || any_row_meets(tensor.key.expert)) {
      weights.load(tensor);
    }
    return device_.mark(Queue::weights);
  }

  /// Whether a row of the blocks that run together has chosen the expert, or may yet.
  bool any_row_meets(std::uint32_t expert) const {
    return !chosen_ ||
           std::any_of(experts_.begin(), experts_.end(), [expert](const BlockExperts& block) {
             return !block.begins.empty() && block.begins[expert] != block.begins[expert + 1];
           });
  }

  /// Has the tensors of a stage brought to its buffer.
  Result<void> stream_stage(std::size_t stage, LayerIo& io) {
    running_->buffer = begin_stage(*running_, stage);
    Buffer& buffer = buffers_[running_->buffer];
    for (const LayerTensor& vector : running_->tensors) {
      buffer.weights.load(vector);
    }
    LIB_TRY_VOID(io.load_stage(running_->stages[stage].order_end));
    buffer.loaded = device_.mark(Queue::weights);
    return {};
  }

  /// Blocks [begin, end) through all stages.
  Result<void> run_together(std::span<const Block> blocks, std::size_t begin, std::size_t end,
                            LayerIo& io, const std::stop_token& stop) {
    for (BlockExperts& block : experts_) {
      block.begins.clear();
    }
    chosen_ = false;
    const std::size_t stages = running_->stages.size();
    std::vector<std::size_t> buffer_of(stages, running_->buffer);
    std::size_t loaded = plan_.memory.staged ? 0 : stages;
    for (std::size_t stage = 0; stage < stages; ++stage) {
      if (streams()) {
        LIB_TRY_VOID(stream_stage(stage, io));
        buffer_of[stage] = running_->buffer;
        loaded = stages;
      }
      // The stages behind come into the other buffers while this one computes.
      for (; loaded < std::min(stages, stage + buffers_.size()); ++loaded) {
        buffer_of[loaded] = begin_stage(*running_, loaded);
        Buffer& buffer = buffers_[buffer_of[loaded]];
        for (const LayerTensor& tensor : running_->tensors) {
          if (!is_expert_role(tensor.key.role) || any_row_meets(tensor.key.expert)) {
            buffer.weights.load(tensor);
          }
        }
        buffer.loaded = device_.mark(Queue::weights);
      }
      Buffer& buffer = buffers_[buffer_of[stage]];
      device_.wait(Queue::compute, buffer.loaded);
      for (std::size_t block = begin; block < end; ++block) {
        LIB_TRY_VOID(run_stage(running_->stages[stage], blocks[block], block, block - begin,
                               stage == 0, stage + 1 == stages, buffer.weights, stop));
      }
      buffer.free = device_.mark(Queue::compute);
      if (chooses_experts(running_->stages[stage])) {
        chosen_ = true;
        if (streams()) {
          io.unneeded_experts(unneeded_experts());
        }
      }
    }
    return {};
  }

  std::vector<bool> unneeded_experts() const {
    std::vector<bool> unneeded(running_->spec->moe.experts);
    for (std::uint32_t expert = 0; expert < unneeded.size(); ++expert) {
      unneeded[expert] = !any_row_meets(expert);
    }
    return unneeded;
  }

  Result<void> run_stage(const Stage& stage, const Block& block, std::size_t index,
                         std::size_t place, bool first, bool last, const StageWeights& weights,
                         const std::stop_token& stop) {
    if (first) {
      LIB_TRY_VOID(transport_.enter(index));
    }
    std::byte* const own = arena_.get() + plan_.blocks + place * plan_.block_bytes;
    const BlockBuffers buffers{transport_.rows_of(index), own + plan_.hidden,
                               own + plan_.attention_out,
                               (plan_.whole_halves ? arena_.get() : own) + plan_.wide,
                               experts_.empty() ? nullptr : &experts_[place]};
    const CaptureTap tap = [&](CapturePoint point, std::byte* rows) {
      const bool router =
          point == CapturePoint::router_ids || point == CapturePoint::router_weights;
      return transport_.capture(
          point, index,
          {rows, block.rows * (router ? running_->spec->moe.top_k * sizeof(std::int32_t)
                                      : model_.hidden_size * dtype_bytes(options_.dtype))});
    };
    if (block.rows != 0) {
      for (const Step& step : stage.steps) {
        LIB_TRY_VOID(steps_.run(step, block, buffers, weights, tap, stop));
      }
    }
    if (last) {
      LIB_TRY_VOID(transport_.leave(index));
    }
    return transport_.idle();
  }

  Result<void> load_final(WeightRole role, DType type, std::span<const std::byte> bytes) {
    const std::vector<WeightRole> roles = final_roles(model_);
    if (std::find(roles.begin(), roles.end(), role) == roles.end()) {
      return invalid(std::string("the model has no ") + weight_role_name(role));
    }
    if (bytes.size() != model_.hidden_size * dtype_bytes(type)) {
      return invalid(std::string(weight_role_name(role)) + ": " + std::to_string(bytes.size()) +
                     " bytes for " + std::to_string(model_.hidden_size) + " elements of " +
                     dtype_name(type));
    }
    const bool bias = role == WeightRole::final_norm_bias;
    const float plus = model_.norm.one_plus && !bias ? 1.0F : 0.0F;
    std::byte* const to = arena_.get() + (bias ? plan_.final_norm_bias : plan_.final_norm);
    device_.load_vector({bytes.data(), type, {}, plus}, model_.hidden_size,
                        reinterpret_cast<float*>(to));
    final_loaded_ = device_.mark(Queue::weights);
    (bias ? final_bias_there_ : final_there_) = true;
    return {};
  }

  Result<void> check_final_loaded() const {
    if (!model_.final_norm) {
      return invalid("the model has no final norm");
    }
    if (!final_there_ || (model_.norm.bias && !final_bias_there_)) {
      return invalid(std::string(final_there_ ? "final_norm_bias" : "final_norm") +
                     " is not loaded");
    }
    return {};
  }

  void drain_all() {
    for (const Queue queue : {Queue::weights, Queue::upload, Queue::compute, Queue::download}) {
      static_cast<void>(drain(device_.mark(queue)));
    }
  }

  Result<void> drain(Ticket ticket) {
    while (true) {
      LIB_TRY(const bool reached, device_.reached(ticket));
      if (reached) {
        return {};
      }
      std::this_thread::sleep_for(std::chrono::microseconds(50));
    }
  }

  const ModelSpec& model_;
  const ExecutorOptions options_;
  Device& device_;
  const ExecutionPlan plan_;
  const std::vector<std::string> products_;
  DeviceMemory arena_;
  DeviceMemory host_;
  StepRunner steps_;
  RowTransport transport_;
  HeadRunner head_;
  std::vector<Buffer> buffers_;
  std::vector<BlockExperts> experts_;  ///< Of the blocks that run together.
  bool chosen_ = false;                ///< It is known which experts their rows meet.
  std::size_t next_buffer_ = 0;
  std::unique_ptr<Layer> loading_;  ///< Begun and not run yet.
  std::unique_ptr<Layer> running_;  ///< Whose blocks run() takes.
  Ticket final_loaded_;
  bool final_there_ = false;
  bool final_bias_there_ = false;
};

Result<ExecutorMemory> LayerExecutor::memory(const ModelSpec& model, const ExecutorOptions& options,
                                             const Device& device) {
  LIB_TRY(const ExecutionPlan plan, make_execution_plan(model, options, device));
  return plan.memory;
}

Result<std::unique_ptr<LayerExecutor>> LayerExecutor::create(const ModelSpec& model,
                                                             const ExecutorOptions& options,
                                                             Device& device) {
  LIB_TRY_VOID(check_spec(model, options, device));
  LIB_TRY(const ExecutionPlan plan, make_execution_plan(model, options, device));
  LIB_TRY(std::vector<std::string> products,
          device.plan_products(product_sizes(model, options, plan, device), options.dtype));
  LIB_TRY(DeviceMemory arena, device.allocate(plan.memory.device_bytes()));
  DeviceMemory host;
  if (plan.state_slots != 0) {
    LIB_TRY(host,
            device.allocate_host(plan.memory.host_bytes - plan.vector_bytes - device.host_bytes()));
  }
  return std::unique_ptr<LayerExecutor>(new LayerExecutor(std::make_unique<Impl>(
      model, options, device, plan, std::move(products), std::move(arena), std::move(host))));
}

LayerExecutor::LayerExecutor(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}
LayerExecutor::~LayerExecutor() = default;

bool LayerExecutor::loads_ahead() const { return impl_->loads_ahead(); }
bool LayerExecutor::streams() const { return impl_->streams(); }
std::uint64_t LayerExecutor::blocks_together() const { return impl_->blocks_together(); }
bool LayerExecutor::keeps_tensors() const { return impl_->keeps_tensors(); }
bool LayerExecutor::copies_rows() const { return impl_->copies_rows(); }

const std::vector<std::string>& LayerExecutor::products() const { return impl_->products(); }

void LayerExecutor::begin_layer(std::uint32_t layer_index) { impl_->begin_layer(layer_index); }

Result<Ticket> LayerExecutor::load(WeightKey key, DType type, std::span<const std::byte> bytes) {
  return impl_->load(key, type, bytes);
}

Result<Ticket> LayerExecutor::load(WeightKey key, const QuantisedMatrix& matrix) {
  return impl_->load(key, matrix);
}

Result<bool> LayerExecutor::reached(Ticket ticket) { return impl_->reached(ticket); }

Result<void> LayerExecutor::wait_for(Ticket ticket) { return impl_->wait_for(ticket); }

Result<void> LayerExecutor::run(std::span<const Block> blocks, LayerIo& io,
                                const std::stop_token& stop) {
  return impl_->run(blocks, io, stop);
}

Result<void> LayerExecutor::run_final_norm(std::span<const std::byte> rows,
                                           std::span<std::byte> normed) {
  return impl_->run_final_norm(rows, normed);
}

std::uint64_t LayerExecutor::head_tiles() const { return impl_->head_tiles(); }

void LayerExecutor::begin_head(std::uint64_t first_tile) { impl_->begin_head(first_tile); }

Result<Ticket> LayerExecutor::load_head(WeightRole role, DType type,
                                        std::span<const std::byte> bytes) {
  return impl_->load_head(role, type, bytes);
}

Result<void> LayerExecutor::run_topk(std::span<const std::byte> normed,
                                     std::span<const std::int32_t> gold_ids,
                                     std::span<std::byte> memory, const std::stop_token& stop) {
  return impl_->run_topk(normed, gold_ids, memory, stop);
}

}  // namespace librarian::gpu_exec
