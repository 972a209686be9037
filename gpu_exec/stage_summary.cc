// What the stages of a layer are, for people.
#include <string>
#include <utility>
#include <vector>

#include "gpu_exec/execution_plan.h"
#include "gpu_exec/layer_executor.h"
#include "gpu_exec/layer_steps.h"

namespace librarian::gpu_exec {
namespace {

/// "attention", "MLP up 0..4095 and down 0..127", ...
StageSummary summary_of(const Stage& stage) {
  StageSummary summary;
  summary.bytes = stage.bytes;
  std::string& text = summary.text;
  const auto add = [&text](const std::string& piece) {
    text += (text.empty() ? "" : ", ") + piece;
  };
  for (const Step& step : stage.steps) {
    const std::string range =
        " " + std::to_string(step.begin) + ".." + std::to_string(step.end - 1);
    switch (step.kind) {
      case StepKind::attention:
        add("attention");
        break;
      case StepKind::attention_out:
        add("its projection" + range);
        break;
      case StepKind::route:
        add("router");
        break;
      case StepKind::shared_expert:
        add("shared expert");
        break;
      case StepKind::expert:
        summary.first_expert = summary.experts == 0 ? step.begin : summary.first_expert;
        ++summary.experts;
        break;
      case StepKind::mlp_up:
        add("MLP up" + range);
        break;
      case StepKind::mlp_down:
        add("MLP down" + range);
        break;
      case StepKind::attention_end:
      case StepKind::mlp_begin:
      case StepKind::mlp_end:
        break;
    }
  }
  if (summary.experts != 0) {
    summary.experts_only = text.empty();
    add("experts " + std::to_string(summary.first_expert) + ".." +
        std::to_string(summary.first_expert + summary.experts - 1));
  }
  text = text.empty() ? "norms" : text;
  return summary;
}

}  // namespace

Result<std::vector<StageSummary>> LayerExecutor::stages(const ModelSpec& model,
                                                        std::uint32_t layer_index,
                                                        const ExecutorOptions& options,
                                                        const Device& device) {
  LIB_TRY(const ExecutionPlan plan, make_execution_plan(model, options, device));
  std::vector<StageSummary> summaries;
  for (const Stage& stage : plan_stages(model, model.layers[layer_index], options, plan, device)) {
    summaries.push_back(summary_of(stage));
  }
  return summaries;
}

}  // namespace librarian::gpu_exec
