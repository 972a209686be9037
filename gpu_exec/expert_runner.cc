#include "gpu_exec/expert_runner.h"

#include <chrono>
#include <thread>

namespace librarian::gpu_exec {
namespace {

constexpr std::chrono::microseconds kPollInterval(20);

Result<void> unless_stopped(const std::stop_token& stop) {
  if (stop.stop_requested()) {
    return Error(ErrorCode::cancelled, "stopped inside a layer");
  }
  return {};
}

}  // namespace

BlockExperts::BlockExperts(const ExecutionPlan& plan, std::byte* block)
    : sums(reinterpret_cast<float*>(block + plan.expert_sums)),
      ids(reinterpret_cast<std::int32_t*>(block + plan.route_ids)),
      weights(reinterpret_cast<float*>(block + plan.route_weights)),
      rows(reinterpret_cast<std::int32_t*>(block + plan.expert_rows)),
      factors(reinterpret_cast<float*>(block + plan.expert_factors)),
      shared_factors(reinterpret_cast<float*>(block + plan.shared_factors)) {}

/// The matrices of an expert.
struct ExpertRunner::Roles {
  WeightKey gate, gate_bias, up, up_bias, down, down_bias;
};

ExpertRunner::ExpertRunner(const ModelSpec& model, const ExecutorOptions& options, Device& device,
                           const ExecutionPlan& plan, std::byte* arena, std::byte* host)
    : model_(model),
      options_(options),
      device_(device),
      in_(arena + plan.expert_in),
      out_(reinterpret_cast<float*>(arena + plan.expert_out)),
      scratch_(arena + plan.scratch),
      host_(device.works_on_host_memory() ? nullptr : host + plan.host_choices) {}

Result<void> ExpertRunner::route(const ExpertWork& work, const CaptureTap& tap) {
  const MoeSpec& moe = work.layer.moe;
  BlockExperts& block = work.block;
  device_.clear(reinterpret_cast<std::byte*>(block.sums),
                work.rows * model_.hidden_size * sizeof(float));
  if (moe.shared_gate) {
    LIB_TRY_VOID(product(work, WeightRole::shared_router, std::nullopt, work.input, 1,
                         block.shared_factors));
  }
  LIB_TRY_VOID(product(work, WeightRole::router_weight, WeightRole::router_bias, work.input,
                       moe.experts, out_));
  RouteOp op;
  op.products = out_;
  op.rows = work.rows;
  op.moe = &moe;
  op.select_bias = work.weights.vector(WeightRole::router_select_bias);
  op.ids = block.ids;
  op.weights = block.weights;
  op.shared_products = moe.shared_gate ? block.shared_factors : nullptr;
  device_.route(op);
  LIB_TRY_VOID(sort_by_expert(work));
  LIB_TRY_VOID(tap(CapturePoint::router_ids, reinterpret_cast<std::byte*>(block.ids)));
  return tap(CapturePoint::router_weights, reinterpret_cast<std::byte*>(block.weights));
}

Result<void> ExpertRunner::sort_by_expert(const ExpertWork& work) {
  const std::uint32_t top_k = work.layer.moe.top_k;
  BlockExperts& block = work.block;
  const std::uint64_t choices = work.rows * top_k;
  if (host_ == nullptr) {
    sort({block.ids, block.weights, block.rows, block.factors}, choices, work);
    return {};
  }
  Choices host;
  host.ids = reinterpret_cast<std::int32_t*>(host_);
  host.weights = reinterpret_cast<float*>(host.ids + choices);
  host.rows = reinterpret_cast<std::int32_t*>(host.weights + choices);
  host.factors = reinterpret_cast<float*>(host.rows + choices);
  const std::uint64_t bytes = choices * sizeof(float);
  device_.wait(Queue::download, device_.mark(Queue::compute));
  device_.copy_out(reinterpret_cast<std::byte*>(block.ids), reinterpret_cast<std::byte*>(host.ids),
                   bytes);
  device_.copy_out(reinterpret_cast<std::byte*>(block.weights),
                   reinterpret_cast<std::byte*>(host.weights), bytes);
  const Ticket there = device_.mark(Queue::download);
  while (true) {
    LIB_TRY(const bool reached, device_.reached(there));
    if (reached) {
      break;
    }
    LIB_TRY_VOID(unless_stopped(work.stop));
    std::this_thread::sleep_for(kPollInterval);
  }
  sort(host, choices, work);
  // The host's arrays are this block's until the next one's choices have come, which is behind
  // everything that waits here.
  device_.copy_in(reinterpret_cast<std::byte*>(host.rows), reinterpret_cast<std::byte*>(block.rows),
                  bytes);
  device_.copy_in(reinterpret_cast<std::byte*>(host.factors),
                  reinterpret_cast<std::byte*>(block.factors), bytes);
  device_.wait(Queue::compute, device_.mark(Queue::upload));
  return {};
}

/// By counting: an expert's rows stay in order.
void ExpertRunner::sort(const Choices& choices, std::uint64_t count, const ExpertWork& work) {
  const MoeSpec& moe = work.layer.moe;
  std::vector<std::uint32_t>& begins = work.block.begins;
  begins.assign(moe.experts + std::size_t{1}, 0);
  for (std::uint64_t i = 0; i < count; ++i) {
    ++begins[static_cast<std::size_t>(choices.ids[i]) + 1];
  }
  for (std::size_t expert = 0; expert < moe.experts; ++expert) {
    begins[expert + 1] += begins[expert];
  }
  std::vector<std::uint32_t> next(begins.begin(), begins.end() - 1);
  for (std::uint64_t i = 0; i < count; ++i) {
    const std::uint32_t at = next[static_cast<std::size_t>(choices.ids[i])]++;
    choices.rows[at] = static_cast<std::int32_t>(i / moe.top_k);
    choices.factors[at] = choices.weights[i];
  }
}

Result<void> ExpertRunner::product(const ExpertWork& work, WeightKey weight,
                                   std::optional<WeightKey> bias, const std::byte* x,
                                   std::uint64_t outputs, float* y) {
  LinearOp op;
  op.x = x;
  op.y = reinterpret_cast<std::byte*>(y);
  op.dtype = options_.dtype;
  op.rows = work.rows;
  op.inputs = model_.hidden_size;
  op.outputs = outputs;
  op.matrix = work.weights.matrix(weight, bias);
  op.y_f32 = true;
  device_.linear(op, scratch_, work.stop);
  return unless_stopped(work.stop);
}

/// out_ = down(act(gate(x)) * up(x)), in f32.
Result<void> ExpertRunner::run(const ExpertWork& work, const Roles& roles, const std::byte* x,
                               std::uint64_t rows, std::uint64_t width, bool few_rows) {
  GluOp glu;
  glu.x = x;
  glu.y = work.act;
  glu.dtype = options_.dtype;
  glu.rows = rows;
  glu.inputs = model_.hidden_size;
  glu.width = width;
  glu.few_rows = few_rows;
  glu.gate = work.weights.matrix(roles.gate, roles.gate_bias);
  glu.up = work.weights.matrix(roles.up, roles.up_bias);
  glu.activation = work.layer.mlp.activation;
  device_.glu(glu, scratch_, work.stop);
  LinearOp down;
  down.x = work.act;
  down.y = reinterpret_cast<std::byte*>(out_);
  down.dtype = options_.dtype;
  down.rows = rows;
  down.inputs = width;
  down.outputs = model_.hidden_size;
  down.matrix = work.weights.matrix(roles.down, roles.down_bias);
  down.y_f32 = true;
  down.few_rows = few_rows;
  device_.linear(down, scratch_, work.stop);
  return unless_stopped(work.stop);
}

Result<void> ExpertRunner::shared(const ExpertWork& work) {
  const MoeSpec& moe = work.layer.moe;
  const Roles roles{WeightRole::shared_gate_weight, WeightRole::gate_bias,
                    WeightRole::shared_up_weight,   WeightRole::up_bias,
                    WeightRole::shared_down_weight, WeightRole::down_bias};
  LIB_TRY_VOID(run(work, roles, work.input, work.rows, moe.shared_width, false));
  device_.combine({work.block.sums, nullptr, moe.shared_gate ? work.block.shared_factors : nullptr,
                   out_, work.rows, model_.hidden_size});
  return {};
}

Result<void> ExpertRunner::expert(const ExpertWork& work, std::uint32_t expert) {
  const MoeSpec& moe = work.layer.moe;
  const BlockExperts& block = work.block;
  const std::uint64_t begin = block.begins[expert];
  const std::uint64_t rows = block.begins[expert + 1] - begin;
  if (rows == 0) {
    return {};
  }
  const float* const factors = block.factors + begin;
  device_.gather({work.input, block.rows + begin, moe.input_scaled ? factors : nullptr, in_,
                  options_.dtype, rows, model_.hidden_size});
  const Roles roles{
      {WeightRole::expert_gate_weight, expert}, {WeightRole::expert_gate_bias, expert},
      {WeightRole::expert_up_weight, expert},   {WeightRole::expert_up_bias, expert},
      {WeightRole::expert_down_weight, expert}, {WeightRole::expert_down_bias, expert}};
  LIB_TRY_VOID(run(work, roles, in_, rows, moe.width, true));
  device_.combine({block.sums, block.rows + begin, moe.input_scaled ? nullptr : factors, out_, rows,
                   model_.hidden_size});
  return {};
}

}  // namespace librarian::gpu_exec
