// Goal: a layer with experts has each tensor of each expert exactly once, wherever the checkpoint
// keeps it, in the order in which the layer uses them.
// Method: golden checkpoints, one tensor for each expert (mixtral) and one for all (gpt_oss), with
// one thing changed at a time.
#include <gtest/gtest.h>

#include <functional>
#include <set>

#include "tests/weightmap/checkpoint_files.h"
#include "weightmap/checkpoint.h"

namespace librarian::weightmap {
namespace {

using gpu_exec::WeightKey;
using gpu_exec::WeightRole;
using testing::CheckpointFiles;
using testing::FileTensor;
using testing::OpenedCheckpoint;

CheckpointFiles golden(const std::string& family) {
  return CheckpointFiles::read(std::string(LIBRARIAN_GOLDEN_DIR) + "/" + family + "/model");
}

std::string bytes_of(const OpenedCheckpoint& opened, const WeightTensor& tensor) {
  return opened.contents.at(opened.checkpoint->files()[tensor.file].name)
      .substr(tensor.bytes.begin, tensor.bytes.size());
}

// Catches: an expert's matrices taken for another's; a part cut at the wrong byte.
TEST(ExpertTensors, AreEachOnceAndWhereTheirBytesAre) {
  for (const char* family : {"mixtral", "gpt_oss", "granitemoe", "qwen3_moe", "deepseek_v3"}) {
    CheckpointFiles files = golden(family);
    const OpenedCheckpoint opened(files.contents());
    ASSERT_TRUE(opened.checkpoint) << opened.checkpoint.error().message();
    const gpu_exec::ModelSpec& spec = opened.checkpoint->spec();
    for (std::int32_t layer = 0; layer < opened.checkpoint->layer_count(); ++layer) {
      const gpu_exec::LayerSpec& made = spec.layers[static_cast<std::size_t>(layer)];
      std::set<WeightKey> keys;
      for (const WeightTensor& tensor : opened.checkpoint->layer(layer).tensors) {
        EXPECT_TRUE(keys.insert(tensor.key).second) << tensor.name;
        const std::size_t bracket = tensor.name.find('[');
        const FileTensor& whole = files.tensor(tensor.name.substr(0, bracket));
        const std::string bytes = bytes_of(opened, tensor);
        if (bracket == std::string::npos) {
          EXPECT_EQ(bytes, whole.bytes) << family << " " << tensor.name;
        } else {
          EXPECT_EQ(tensor.name.substr(bracket), "[" + std::to_string(tensor.key.expert) + "]");
          const std::size_t part = whole.bytes.size() / made.moe.experts;
          EXPECT_EQ(bytes, whole.bytes.substr(tensor.key.expert * part, part)) << tensor.name;
        }
      }
      const std::vector<WeightKey> wanted = gpu_exec::weight_keys(spec, made);
      EXPECT_EQ(keys, std::set<WeightKey>(wanted.begin(), wanted.end())) << family << " " << layer;
    }
  }
}

TEST(ExpertTensors, ComeAfterWhatChoosesThemAndByNumber) {
  for (const char* family : {"mixtral", "gpt_oss"}) {
    OpenedCheckpoint opened(golden(family).contents());
    ASSERT_TRUE(opened.checkpoint) << opened.checkpoint.error().message();
    opened.checkpoint->order_by_stage();
    std::vector<std::uint32_t> experts;
    bool router_seen = false;
    for (const WeightTensor& tensor : opened.checkpoint->layer(1).tensors) {
      router_seen = router_seen || tensor.key.role == WeightRole::router_weight;
      const bool matrix = tensor.key.role == WeightRole::expert_gate_weight ||
                          tensor.key.role == WeightRole::expert_up_weight ||
                          tensor.key.role == WeightRole::expert_gate_up_weight ||
                          tensor.key.role == WeightRole::expert_down_weight;
      if (matrix) {
        EXPECT_TRUE(router_seen) << family << " " << tensor.name;
        experts.push_back(tensor.key.expert);
      } else {
        EXPECT_TRUE(experts.empty()) << family << " " << tensor.name << " behind matrices";
      }
    }
    EXPECT_TRUE(std::is_sorted(experts.begin(), experts.end())) << family;
    EXPECT_EQ(experts.size(), std::string(family) == "mixtral" ? 24U : 16U);
  }
}

// Catches: a router's corrections, or its matrix, that make every matrix take twice the memory
// because they are of 4 bytes.
TEST(ExpertTensors, WideRoutersDoNotWidenTheMatrices) {
  for (const auto& [family, tensor] :
       {std::pair("deepseek_v3", "model.layers.1.mlp.gate.e_score_correction_bias"),
        std::pair("hunyuan_v1_moe", "model.layers.0.mlp.gate.wg.weight")}) {
    CheckpointFiles files = golden(family);
    ASSERT_EQ(files.tensor(tensor).dtype, "F32") << family;
    const OpenedCheckpoint opened(files.contents());
    ASSERT_TRUE(opened.checkpoint) << opened.checkpoint.error().message();
    EXPECT_EQ(opened.checkpoint->widest_dtype(), gpu_exec::DType::bf16) << family;
  }
}

struct Change {
  const char* what;
  const char* family;
  std::function<void(CheckpointFiles&)> make;
  const char* named;  ///< In the error.
};

void rename(CheckpointFiles& files, const std::string& from, const std::string& to) {
  files.tensor(from).name = to;
  files.index[to] = files.index.at(from);
  files.index.erase(from);
}

TEST(ExpertTensors, ThatAreNotWhatTheConfigSaysAreRefusedByName) {
  constexpr const char* kW1 = "model.layers.1.block_sparse_moe.experts.3.w1.weight";
  constexpr const char* kAll = "model.layers.1.mlp.experts.gate_up_proj";
  const Change changes[] = {
      {"missing", "mixtral",
       [](CheckpointFiles& files) {
         files.take(kW1);
         files.index.erase(kW1);
       },
       kW1},
      {"a number too large", "mixtral",
       [](CheckpointFiles& files) {
         rename(files, kW1, "model.layers.1.block_sparse_moe.experts.8.w1.weight");
       },
       "experts.8.w1.weight"},
      {"a number with a zero in front", "mixtral",
       [](CheckpointFiles& files) {
         rename(files, kW1, "model.layers.1.block_sparse_moe.experts.03.w1.weight");
       },
       "experts.03.w1.weight"},
      {"no number", "mixtral",
       [](CheckpointFiles& files) {
         rename(files, kW1, "model.layers.1.block_sparse_moe.experts..w1.weight");
       },
       "experts..w1.weight"},
      {"the name of a part of all experts", "gpt_oss",
       [](CheckpointFiles& files) { rename(files, kAll, std::string(kAll) + "[0]"); },
       "gate_up_proj[0]"},
      {"another shape", "mixtral",
       [](CheckpointFiles& files) {
         std::swap(files.tensor(kW1).shape[0], files.tensor(kW1).shape[1]);
       },
       kW1},
      {"an expert too few in the tensor of all", "gpt_oss",
       [](CheckpointFiles& files) {
         FileTensor& all = files.tensor(kAll);
         all.bytes.resize(all.bytes.size() / 8 * 7);
         all.shape[0] = 7;
       },
       "gate_up_proj' has shape [7, 64, 64] where config.json asks for 8 experts in layer 1"},
      {"another shape in the tensor of all", "gpt_oss",
       [](CheckpointFiles& files) {
         FileTensor& all = files.tensor("model.layers.1.mlp.experts.down_proj");
         std::swap(all.shape[1], all.shape[2]);
       },
       "down_proj[0]' has shape [64, 32] where config.json asks for [32, 64]"},
      {"experts in a layer that has none", "qwen3_moe",
       [](CheckpointFiles& files) {
         rename(files, "model.layers.1.mlp.experts.3.up_proj.weight",
                "model.layers.0.mlp.experts.3.up_proj.weight");
       },
       "model.layers.0.mlp.experts.3.up_proj.weight"},
      {"blocks beside the tensor of all", "gpt_oss",
       [](CheckpointFiles& files) {
         const std::string blocks = std::string(kAll) + "_blocks";
         files.files.begin()->second.push_back(
             {blocks, "U8", {8, 64, 2, 16}, std::string(std::size_t{8} * 64 * 32, '\0')});
         files.index[blocks] = files.files.begin()->first;
       },
       "gate_up_proj_blocks"},
      {"an unknown tensor among experts", "mixtral",
       [](CheckpointFiles& files) {
         rename(files, kW1, "model.layers.1.block_sparse_moe.experts.3.w4.weight");
       },
       "experts.3.w4.weight"},
  };
  for (const Change& change : changes) {
    CheckpointFiles files = golden(change.family);
    change.make(files);
    const OpenedCheckpoint opened(files.contents());
    ASSERT_FALSE(opened.checkpoint) << change.what;
    EXPECT_EQ(opened.checkpoint.error().code(), ErrorCode::bad_input) << change.what;
    EXPECT_NE(opened.checkpoint.error().message().find(change.named), std::string::npos)
        << change.what << ": " << opened.checkpoint.error().message();
  }
}

// Catches: the text part of a larger model whose stacked experts have another prefix.
TEST(ExpertTensors, AreThoseOfTheTextPartOfALargerModel) {
  CheckpointFiles files = golden("llama4_text");
  const std::uint64_t bytes = OpenedCheckpoint(files.contents()).checkpoint->weight_bytes();
  const Json text = files.config;
  files.config = {{"model_type", "llama4"},
                  {"text_config", text},
                  {"vision_config", {{"hidden_size", 8}}},
                  {"torch_dtype", "bfloat16"}};
  files.index.clear();
  for (auto& [file, tensors] : files.files) {
    for (FileTensor& tensor : tensors) {
      tensor.name = "language_model." + tensor.name;
      files.index[tensor.name] = file;
    }
  }
  const std::string vision = "vision_model.patch_embedding.linear.weight";
  files.files.begin()->second.push_back({vision, "BF16", {2, 2}, std::string(8, '\0')});
  files.index[vision] = files.files.begin()->first;
  const OpenedCheckpoint opened(files.contents());
  ASSERT_TRUE(opened.checkpoint) << opened.checkpoint.error().message();
  EXPECT_EQ(opened.checkpoint->weight_bytes(), bytes);
}

// Catches: layers that predict further tokens, or an index of keys, that are fetched or refused.
TEST(ExpertTensors, WhatTextPassesByIsNotNeeded) {
  CheckpointFiles files = golden("deepseek_v3");
  const auto add = [&](const std::string& name) {
    files.files.begin()->second.push_back({name, "BF16", {2, 2}, std::string(8, '\0')});
    files.index[name] = files.files.begin()->first;
  };
  const std::uint64_t bytes = OpenedCheckpoint(files.contents()).checkpoint->weight_bytes();
  add("model.layers.3.eh_proj.weight");
  add("model.layers.1.self_attn.indexer.wq_b.weight");
  add("model.layers.1.self_attn.k_scale");
  EXPECT_FALSE(OpenedCheckpoint(files.contents()).checkpoint) << "no layer beyond in config.json";
  files.config["num_nextn_predict_layers"] = 1;
  const OpenedCheckpoint opened(files.contents());
  ASSERT_TRUE(opened.checkpoint) << opened.checkpoint.error().message();
  EXPECT_EQ(opened.checkpoint->weight_bytes(), bytes);
}

}  // namespace
}  // namespace librarian::weightmap
