#pragma once
/// The job's side of a layer whose weights come stage by stage.

#include <gtest/gtest.h>

#include <algorithm>
#include <map>
#include <span>
#include <utility>
#include <vector>

#include "tests/gpu_exec/exec_testing.h"

namespace librarian::gpu_exec {

/// Brings weights when the executor asks for them, and takes them away afterwards.
class StreamingSink final : public RecordingSink {
 public:
  StreamingSink(LayerExecutor& executor, const TestLayer& layer)
      : executor_(executor), layer_(layer) {}

  Result<void> load_stage(std::uint32_t order_end) override {
    EXPECT_GT(order_end, order_);
    std::vector<WeightKey> keys = weight_keys(layer_.model, layer_.model.layers[0]);
    std::stable_sort(keys.begin(), keys.end(), [](const WeightKey& a, const WeightKey& b) {
      return stage_order(a) < stage_order(b);
    });
    for (const WeightKey& key : keys) {
      if (stage_order(key) < order_ || stage_order(key) >= order_end ||
          (is_expert_role(key.role) && !unneeded.empty() && unneeded[key.expert])) {
        continue;
      }
      Bytes bytes = to_bytes(layer_.weights.at(key), layer_.weight_type);
      LIB_TRY(const Ticket taken, executor_.load(key, layer_.weight_type, bytes));
      LIB_TRY_VOID(executor_.wait_for(taken));
      std::fill(bytes.begin(), bytes.end(), std::byte{0xFF});  // NaN for whoever still reads them.
    }
    order_ = order_end;
    ++stages;
    return {};
  }

  void unneeded_experts(const std::vector<bool>& experts) override {
    EXPECT_TRUE(unneeded.empty()) << "told once";
    unneeded = experts;
  }

  std::size_t stages = 0;
  std::vector<bool> unneeded;

 private:
  LayerExecutor& executor_;
  const TestLayer& layer_;
  std::uint32_t order_ = 0;
};

/// Runs a layer over groups of blocks, each of which has the weights brought. Returns the state.
inline Bytes run_streamed(LayerExecutor& executor, const TestLayer& layer,
                          std::span<const Block> blocks, Bytes state,
                          std::map<CapturePoint, Bytes>& captures, std::size_t stages_min) {
  executor.begin_layer(0);
  std::uint64_t at = 0;
  for (std::size_t first = 0; first < blocks.size(); first += executor.blocks_together()) {
    const auto group =
        blocks.subspan(first, std::min(executor.blocks_together(), blocks.size() - first));
    std::uint64_t bytes = 0;
    for (const Block& block : group) {
      bytes += block.rows * layer.model.hidden_size * dtype_bytes(DType::bf16);
    }
    StreamingSink sink(executor, layer);
    sink.begin(group, std::span(state).subspan(at, bytes));
    const auto done = executor.run(group, sink, {});
    EXPECT_TRUE(done) << done.error().message();
    EXPECT_GE(sink.stages, stages_min);
    EXPECT_EQ(sink.unneeded.size(), layer.model.layers[0].moe.experts);
    for (const auto& [point, rows] : sink.rows) {
      captures[point].insert(captures[point].end(), rows.begin(), rows.end());
    }
    at += bytes;
  }
  return state;
}

}  // namespace librarian::gpu_exec
